"""What a rank did, and how long its calls waited for other ranks."""

from __future__ import annotations

import pytest

from tests.traced import call, part, record
from yolods.distributed.phases import Mark
from yolods.trace.record import REST_TRACK, halves, parts_between, with_waits


def mark(phase: str, step: int = 4, number: int | None = None) -> Mark:
    return Mark(step, phase, number, 1, 0, False)


def test_parts_meet_and_empty_ones_are_left_out() -> None:
    marks = [(1.0, mark("data")), (2.0, mark("backward")), (2.0, mark("weights", number=3))]
    parts = parts_between(marks, 5.0)
    assert parts == (part(1.0, 2.0, "data"), part(2.0, 5.0, "weights", 3))
    assert [each.track for each in parts] == ["loader", "weights' part of backward"]
    assert part(0, 1, "a new phase").track == REST_TRACK


def test_a_step_lasts_until_the_next_one_begins() -> None:
    one = record(part(0, 1, "data"), part(1, 4, "forward"), part(4, 6, "data", step=5))
    assert one.steps() == (4, 5)
    assert one.bounds(4) == (0, 4) and one.bounds(5) == (4, 6)


def test_a_rank_waits_for_the_last_one_to_call() -> None:
    """The second call's data reaches one of them later, and nobody waits for the other."""
    early, late = record(calls=[call(0, 5), call(6, 7)]), record(calls=[call(4, 5), call(6, 9)])
    waited = [[each.waited for each in one.calls] for one in with_waits([early, late])]
    assert waited == [[4.0, 0.0], [0.0, 0.0]]


def test_a_rank_that_worked_meanwhile_has_not_waited_longer_than_it_stood_still() -> None:
    hidden = call(0, 6, held=((0, 0.25), (4.5, 6)))
    (one, _) = with_waits([record(calls=[hidden]), record(calls=[call(5, 6)])])
    assert one.calls[0].waited == 0.75


def test_groups_are_compared_apart() -> None:
    first = record(calls=[call(0, 3, "a"), call(3, 4, "b")])
    second = record(calls=[call(0, 9, "b")])
    third = record(calls=[call(2, 3, "a")])
    waited = [each.waited for each in with_waits([first, second, third])[0].calls]
    assert waited == [2.0, 0.0]


def test_at_a_boundary_a_rank_waits_until_the_other_one_sends() -> None:
    """Of two messages the first is sent late, and the second is only long on its way."""
    received = [
        call(0, 4, peer=1, sent=0.0, tag=1, held=((0, 0.5), (1, 4))),
        call(4, 9, peer=1, sent=0.0, tag=2),
    ]
    sent = [call(1, 1, peer=0, tag=2), call(3, 3.5, peer=0, tag=1)]
    first, second = with_waits([record(calls=received), record(calls=sent, rank=1)])
    assert [each.waited for each in first.calls] == [2.5, 0.0]
    assert [each.waited for each in second.calls] == [0.0, 0.0]


def test_calls_that_cannot_be_matched_wait_for_nobody() -> None:
    one, other = record(calls=[call(0, 9), call(9, 10)]), record(calls=[call(8, 9)])
    assert [each.waited for each in with_waits([one, other])[0].calls] == [0.0, 0.0]
    unknown = record(calls=[call(0, 9, "")])
    assert with_waits([unknown, record(calls=[call(5, 9, "")])])[0].calls[0].waited == 0.0


@pytest.mark.parametrize(
    ("waited", "waits", "moves"),
    [
        (0.0, [], [(0, 1), (3, 5)]),
        (0.5, [(0, 0.5)], [(0.5, 1), (3, 5)]),
        (2.0, [(0, 1), (3, 4)], [(4, 5)]),
        (3.0, [(0, 1), (3, 5)], []),
    ],
)
def test_a_call_waits_first_and_moves_its_data_then(waited, waits, moves) -> None:
    assert halves(call(0, 5, held=((0, 1), (3, 5)), waited=waited)) == (waits, moves)
