"""Every instant of a step belongs to one kind of work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from tests.traced import call, part, record
from yolods.trace.record import RankRecord, with_waits
from yolods.trace.shares import BETWEEN, KINDS_OF_WORK, shares, step_seconds, stretches, what_holds


def kinds(one: RankRecord) -> list[tuple[float, float, str]]:
    return [(each.begin, each.end, each.kind) for each in stretches(one)]


def test_what_a_rank_stands_still_for_is_taken_from_its_phase() -> None:
    one = record(
        part(0, 4, "forward"),
        part(4, 8, "backward"),
        calls=[call(1, 2, waited=0.5), call(3, 5), call(4.5, 5.5)],
    )
    assert kinds(one) == [
        (0, 1, "forward"),
        (1, 1.5, "waits"),
        (1.5, 2, "collectives"),
        (2, 3, "forward"),
        (3, 4, "collectives"),
        (4, 5, "collectives"),
        (5, 5.5, "collectives"),
        (5.5, 8, "backward"),
    ]


def test_a_call_over_several_parts_is_in_each_of_them() -> None:
    one = record(*(part(at, at + 1, "data", at) for at in range(3)), calls=[call(0.5, 2.5)])
    found = list(stretches(one))
    assert [each.part.number for each in found] == [0, 0, 1, 2, 2]
    assert all(one.end == other.begin for one, other in pairwise(found))


def test_shares_add_up() -> None:
    one = record(
        part(0, 2, "data"),
        part(2, 5, "forward"),
        part(5, 7, "weights"),
        part(7, 8, "the optimizer"),
        part(8, 9, "the screen"),
        part(9, 10, "reduction"),
        part(10, 99, "evaluation"),
        calls=[call(4, 5, waited=1.0), call(20, 30)],
    )
    found = shares(one)
    assert tuple(found) == KINDS_OF_WORK and sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.2, 0.1, 0.1])
    assert step_seconds([one, record(part(0, 30, "data"))]) == (20, 44.5)
    assert [each.kind for each in stretches(one)][-1] == BETWEEN


def ranks(*each: Sequence[tuple[str, float]]) -> list[RankRecord]:
    """Ranks that spend so many seconds in phases, one after the other; "late" in a wait."""
    found = []
    for rank, phases in enumerate(each):
        now, parts, calls = 0.0, [], []
        for phase, seconds in phases:
            if phase in ("late", "links"):
                calls.append(call(now, now + seconds, waited=seconds * (phase == "late")))
                phase = "backward"
            parts.append(part(now, now + seconds, phase))
            now += seconds
        found.append(record(*parts, rank=rank, calls=calls))
    return found


@pytest.mark.parametrize(
    ("records", "bound", "told"),
    [
        (ranks([("forward", 4), ("backward", 6)]), None, "computation: forward and backward take"),
        (
            ranks([("forward", 9)], [("forward", 5), ("data", 4)]),
            None,
            "the loader: rank 1 waits 4",
        ),
        (
            ranks([("forward", 5), ("late", 4)], [("forward", 9)]),
            None,
            "unequal ranks: they wait 22% of a step for each other, most for rank 1, which waits "
            "least (0%)",
        ),
        (
            ranks([("forward", 5), ("late", 4)], [("forward", 9)]),
            0.15,
            "the pipeline: ranks wait 22% of a step, of which its schedule explains 15%; the "
            "busiest is rank 1",
        ),
        (ranks([("forward", 5), ("links", 5)]), None, "the links: 50% of a step in collectives"),
        (ranks([("forward", 5), ("the optimizer", 5)]), None, "the optimizer: 50% of a step"),
        (
            ranks([("gradients", 4), ("a snapshot", 1), ("forward", 5)]),
            None,
            "neither passes nor links: 50% of a step, most of it in 'gradients'",
        ),
        (
            ranks([("forward", 5), ("the screen", 4), ("late", 1), ("the screen", 10)]),
            None,
            "what is done between steps: 50% of the time, most of it in 'the screen'",
        ),
    ],
)
def test_one_line_says_what_holds_the_run_back(records, bound, told) -> None:
    assert what_holds(records, bound).startswith(told)


def test_waits_come_from_comparing_ranks() -> None:
    early, late = record(part(0, 5, "forward"), calls=[call(2, 5)]), record(part(0, 5, "forward"))
    late = record(*late.parts, rank=1, calls=[call(4, 5)])
    assert shares(with_waits([early, late])[0])["waits"] == pytest.approx(0.4)
