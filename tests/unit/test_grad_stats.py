"""One step's gradients in numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from yolods.stability.grad_stats import GradStats


def reading(*norms: float, loss: tuple[float, ...] = (1.0, 2.0)) -> GradStats:
    names = tuple(f"p{place}" for place in range(len(norms)))
    return GradStats(names, np.array(norms), None, loss, instances=3, scale=1.0)


def test_the_global_norm_is_that_of_all_gradients_laid_end_to_end():
    assert reading(3.0, 4.0).norm == pytest.approx(5.0)
    assert reading(3.0, 4.0).total_loss == pytest.approx(3.0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_shows_in_the_norm_and_by_its_place(bad):
    found = reading(1.0, bad, 2.0)
    assert not math.isfinite(found.norm)
    assert found.bad == [1]
    assert reading(1.0, 2.0).bad == []
