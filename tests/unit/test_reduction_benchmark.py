"""The arithmetic of benchmarks/reduction.py."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.reduction import OLD
from benchmarks.reduction_report import (
    accuracy_table,
    missed_targets,
    ring_bytes,
    sent_by,
    sent_table,
)
from tests.calls import Call


@pytest.mark.parametrize(
    ("operation", "ranks", "expected"),
    [
        ("all_reduce", 2, 400),
        ("all_reduce", 4, 600),
        ("reduce_scatter_tensor", 4, 600),
        ("exchange", 4, 300),
        ("all_gather_into_tensor", 4, 1200),  # 400 bytes are one rank's part
        ("broadcast", 2, 200),
    ],
)
def test_bytes_of_a_ring(operation: str, ranks: int, expected: float) -> None:
    assert ring_bytes(Call(operation, 100, 4, ranks)) == expected


def test_a_step_is_the_sum_of_its_calls_and_numbers_are_no_gradients() -> None:
    gradients = [Call("exchange", 10_000, 4, 2), Call("all_reduce", 10_000, 4, 2)]
    made = [*gradients, Call("all_reduce", 200, 4, 2), Call("all_gather_into_tensor", 9000, 4, 2)]
    sent = sent_by(made, made[:1])
    assert (sent.bytes, sent.calls) == (20_000 + 40_000 + 800 + 36_000, 4)
    assert (sent.reduced, sent.early) == (60_000, 20_000)


def case(stage: int, accumulation: int, *, old: bool) -> dict[str, Any]:
    zero = {"stage": stage, **(OLD[stage] if old else {})}
    return {"zero": zero, "accumulation": accumulation, "old": old}


def result(sent: float, *, calls: int = 5, early: float = 90.0) -> dict[str, Any]:
    return {"bytes": sent, "calls": calls, "reduced": 100.0, "early": early, "broadcasts": 0}


def test_targets_hold_for_the_present_way_alone() -> None:
    cases = [case(1, 1, old=True), case(1, 1, old=False)]
    good, bad = result(105e6), result(106e6, early=79.0)
    assert missed_targets(cases, [[bad, good]], 100e6) == []
    assert missed_targets(cases, [[good, bad], [good, bad]], 100e6) == [
        "ZeRO-1, 1 micro-batches: 1.06 times 2P, not 1.05",
        "ZeRO-1, 1 micro-batches: 79% begin early, not 80%",
    ]
    assert not missed_targets([case(2, 4, old=False)], [[result(199e6)]], 100e6)
    assert missed_targets([case(2, 4, old=False)], [[result(201e6)]], 100e6)
    assert missed_targets([case(3, 1, old=False)], [[result(1.0, calls=11)]], 100e6) == [
        "ZeRO-3, 1 micro-batches: 11 calls, not 10"
    ]


def test_a_row_has_before_and_now() -> None:
    cases = [case(1, 1, old=True), case(1, 1, old=False)]
    rows = sent_table(cases, [[result(150e6, calls=6, early=0.0), result(100e6)]], 100e6)
    assert rows[2] == ("| 1 | 1 | 150.00 -> 100.00 | 1.50 -> 1.00 | 6 -> 5 | 0% -> 90% | 0 -> 0 |")


def test_a_row_of_accuracy() -> None:
    found = {"bf16": {"whole": 0.0021, "worst": 0.004, "where": "model.0"}}
    assert accuracy_table(found)[2] == "| bf16 | 2.1e-03 | 4.0e-03 | model.0 |"
