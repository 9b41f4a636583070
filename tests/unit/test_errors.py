"""Faults are collected and said together; near misses are offered."""

from __future__ import annotations

import pytest

from yolods.errors import Faults, UserError, nearest, reason_of


def test_all_faults_are_said_at_once_in_their_order():
    faults = Faults()
    faults.add("first")
    faults.add("second")
    with pytest.raises(UserError) as caught:
        faults.raise_if_any()
    assert str(caught.value) == "first\nsecond"
    assert list(faults) == ["first", "second"]


def test_a_prefix_stands_above_them():
    faults = Faults()
    faults.add("one")
    with pytest.raises(UserError, match=r"^in x:\none$"):
        faults.raise_if_any("in x:")


def test_no_fault_raises_nothing_and_is_false():
    faults = Faults()
    faults.raise_if_any("prefix")
    assert not faults
    faults.add("now")
    assert faults


def test_the_same_fault_is_said_once():
    faults = Faults()
    faults.add("twice")
    faults.add("twice")
    assert len(faults) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mosaik", " (did you mean 'mosaic'?)"),
        ("LR0", " (did you mean 'lr0'?)"),
        ("quite_another_thing", ""),
    ],
)
def test_nearest(name: str, expected: str):
    assert nearest(name, ["mosaic", "lr0", "mixup"]) == expected


def test_an_exception_is_told_on_one_line():
    assert reason_of(ValueError("a\n  b")) == "ValueError: a b"
    assert reason_of(AssertionError()) == "AssertionError"
