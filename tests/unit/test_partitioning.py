"""What ZeRO-3 holds in a backward pass, from arrivals that can be worked out by hand."""

from __future__ import annotations

import numpy as np

from yolods.plan.memory.partitioning import (
    copied_elements,
    dividing_elements,
    released_elements,
)
from yolods.plan.memory.timeline import Timeline

LARGE, SMALL = 150_000, 60
PASSES = Timeline(
    forward=np.zeros(1, np.int64),
    backward=np.zeros(8, np.int64),
    arrivals=np.array([[1, SMALL], [3, LARGE], [5, 30]]),
    ended=6,
)


def test_a_bucket_for_all_is_copied_once_at_the_end() -> None:
    found = dividing_elements(PASSES, 1_000_000, 2, gloo=False)
    assert found.tolist() == [0, 0, 0, 0, 0, 0, LARGE + SMALL + 30, 0]


def test_gloo_copies_what_it_reduces_once_more() -> None:
    found = dividing_elements(PASSES, 1_000_000, 2, gloo=True)
    assert found[6] == 2 * (LARGE + SMALL + 30)


def test_a_gradient_larger_than_the_bucket_stays_where_it_is_until_the_next() -> None:
    found = dividing_elements(PASSES, 100, 2, gloo=True)
    # Each gradient is divided alone, so only gloo copies it.
    assert found.tolist() == [0, 0, SMALL, LARGE, 2 * LARGE, 0, 30, 0]


def test_a_gradient_that_needs_padding_is_copied_also_alone() -> None:
    found = dividing_elements(PASSES, 100, 7, gloo=False)
    assert found[2] == SMALL and found[4] == 2 * LARGE


def test_zero_0_copies_a_bucket_when_it_is_complete() -> None:
    assert copied_elements(PASSES, 1_000_000).tolist() == [0] * 5 + [LARGE + SMALL + 30] * 3
    found = copied_elements(PASSES, LARGE + SMALL)
    assert found.tolist() == [0, 0, 0, LARGE + SMALL, LARGE + SMALL, *[LARGE + SMALL + 30] * 3]
    assert copied_elements(PASSES, 1).tolist() == PASSES.arrived.tolist()


def test_gathered_parameters_go_with_their_gradients_and_small_ones_stay() -> None:
    assert released_elements(PASSES).tolist() == [0, 0, 0, *[LARGE] * 5]


def test_one_rank_joins_nothing_under_zero_2() -> None:
    assert not dividing_elements(PASSES, 1_000_000, 1, joins=False).any()
    assert dividing_elements(PASSES, 1_000_000, 2)[6] == LARGE + SMALL + 30
