"""Optimizers that are known and refused: by any spelling of their letters, each with what to
use."""

from __future__ import annotations

import pytest

from yolods.config.hyper.hyperparameters import OPTIMIZERS
from yolods.config.optimizers.unsupported import UNSUPPORTED, why_untrained


@pytest.mark.parametrize("name", ["Lion", "lion", "LION"])
def test_the_case_of_letters_does_not_matter(name):
    assert why_untrained(name) == UNSUPPORTED["Lion"]


@pytest.mark.parametrize("name", ["SGD", "no such one", None, 3])
def test_what_is_trained_with_and_what_nobody_knows_has_no_reason(name):
    assert why_untrained(name) is None


def test_nothing_is_both_refused_and_trained_with():
    trained = {name.lower() for name in OPTIMIZERS}
    assert not trained & {name.lower() for name in UNSUPPORTED}
