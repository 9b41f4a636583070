"""Rules of single settings: what each permits, in which type it comes out, and what is said where
it does not."""

from __future__ import annotations

import dataclasses
import math

import pytest

from yolods.errors import Faults
from yolods.parsing.rules import (
    ADDRESSABLE,
    COUNTABLE,
    check,
    either,
    flag,
    is_count,
    items,
    one_of,
    only_false,
    optional,
    read_block,
    real,
    setting,
    shown,
    single,
    text,
    whole,
)

PERMITTED = [
    (real(), "1e-3", 0.001),
    (real(0, 1), 1, 1.0),
    (real(0, 1), 0, 0.0),
    (whole(), 3.0, 3),
    (whole(2, 4), 4, 4),
    (whole(most=ADDRESSABLE), COUNTABLE + 1, COUNTABLE + 1),
    (flag(), False, False),
    (only_false("false"), False, False),
    (text(), "a", "a"),
    (one_of("SGD", "AdamW"), "adamw", "AdamW"),
    (optional(whole()), None, None),
    (optional(whole()), 2, 2),
    (either(whole(1), text()), "4.1", "4.1"),
    (either(whole(1), text()), 4.0, 4),
    (items(whole(), what="a list"), [1, 2.0], (1, 2)),
    (single(whole()), 5, (5,)),
]


@pytest.mark.parametrize(("rule", "value", "expected"), PERMITTED)
def test_a_value_comes_out_in_its_own_type(rule, value, expected):
    found = rule.parse(value)
    assert found == expected and type(found) is type(expected)


REFUSED = [
    *((real(), value) for value in (True, None, "x", "nan", math.inf, [1])),
    (real(0, above=True), 0),
    (real(0, 1, below=True), 1),
    (real(0, 1), 1.1),
    *((whole(), value) for value in (True, "3", 2.5, -1)),
    (whole(2, 4), 5),
    (whole(), COUNTABLE + 1),
    *((flag(), value) for value in (1, "true", None)),
    *((only_false("false"), value) for value in (True, 0, None)),
    *((text(), value) for value in ("", 1)),
    (one_of("SGD"), "Adam"),
    (optional(whole()), "x"),
    (either(whole(1), text()), 0),
    *(
        (items(whole(), count=2, what="a pair"), value)
        for value in ([1], [1, 2, 3], "12", [1, "x"])
    ),
    (items(whole(), what="a list"), []),
]


@pytest.mark.parametrize(("rule", "value"), REFUSED)
def test_what_merely_looks_like_a_value_is_refused(rule, value):
    with pytest.raises((ValueError, OverflowError)):
        rule.parse(value)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (real(), "a number"),
        (real(0), "a number of at least 0"),
        (real(0, above=True), "a number above 0"),
        (real(0, 1, below=True), "a number in [0, 1)"),
        (whole(1), "a whole number of at least 1"),
        (whole(1, 3), "a whole number in [1, 3]"),
        (optional(flag()), "true or false, or empty"),
        (either(whole(1), text()), "a whole number of at least 1, or text"),
        (one_of("a", "b"), "one of a, b"),
    ],
)
def test_a_rule_says_what_it_permits(rule, words):
    assert rule.permitted == words


def test_a_fault_names_the_place_the_value_and_the_rule():
    faults = Faults()
    assert check(whole(1), "many", "hyp.yaml line 3: epochs", faults) == (False, None)
    assert check(whole(1), COUNTABLE + 1, "--epochs", faults) == (False, None)
    assert check(whole(1), 7, "--epochs", faults) == (True, 7)
    assert list(faults) == [
        "hyp.yaml line 3: epochs is 'many': it must be a whole number of at least 1",
        f"--epochs is {COUNTABLE + 1}: it must be a whole number of at least 1, and at most "
        f"{COUNTABLE}",
    ]


def test_a_value_is_shown_short_and_as_it_was_written():
    assert [shown(value) for value in (None, True, False, "a", 1.5)] == [
        "empty",
        "true",
        "false",
        "'a'",
        "1.5",
    ]
    assert len(shown("x" * 500)) == 60


@dataclasses.dataclass(frozen=True)
class Inner:
    """A block in a block."""

    size: int = setting(1, whole(1))


@dataclasses.dataclass(frozen=True)
class Outer:
    """A block."""

    name: str = setting("a", text())
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_a_block_is_filled_and_what_is_wrong_in_it_keeps_its_default():
    faults = Faults()
    assert read_block(Outer, {"name": "b", "inner": {"size": 4}}, "block", faults) == Outer(
        "b", Inner(4)
    )
    assert read_block(Outer, {"name": None, "inner": "auto"}, "block", faults) == Outer()
    assert not faults
    assert read_block(Outer, {"name": 3, "inner": {"siz": 4}}, "block", faults) == Outer()
    assert read_block(Outer, [1], "block", faults) == Outer()
    assert list(faults) == [
        "block.name is 3: it must be text",
        "block.inner: unknown key 'siz' (did you mean 'size'?); known: size",
        "block is [1]: it must be an object of settings, {...}",
    ]


def test_what_counts_something():
    values = [1, 80, 0, -1, True, 2.0, "3", None]
    assert list(map(is_count, values)) == [True, True, *(6 * [False])]
