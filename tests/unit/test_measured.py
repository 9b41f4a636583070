"""From the calls of a step to its numbers."""

from __future__ import annotations

import pytest

from yolods.traffic.carried import Carried
from yolods.traffic.measured import MeteredCall, StepTraffic, can_be_read, count, read
from yolods.traffic.moments import HostMoments
from yolods.traffic.replay import TimedCall

REDUCE = Carried("reduce", "all", 1000.0)
THERE, HERE = Carried("boundary", "two", 500.0, 3), Carried("boundary", "two", 0.0, 3, 7)


def test_bytes_and_calls() -> None:
    step = StepTraffic(1, 2.0)
    for each in (REDUCE, REDUCE, THERE, THERE, HERE):
        count(step, each)
    assert step.sent == {"reduce": 2000, "gather": 0, "boundary": 1000, "ours": 0}
    assert step.calls == {"reduce": 2, "gather": 0, "boundary": 2, "ours": 0}, "a receive is none"
    assert step.peers == {3: 1000}


def test_a_call_that_waits_hides_nothing() -> None:
    step = StepTraffic(1, 2.0)
    read(step, [MeteredCall(REDUCE, [(0.0, 0.5)])], HostMoments())
    assert (step.in_calls["reduce"], step.still, step.hidden) == (0.5, 0.5, 0.0)
    assert step.timed == [TimedCall("all", None, 1000.0, 0, False, ((0.0, 0.5),))]


def test_what_runs_beside_the_ranks_own_work_is_hidden() -> None:
    """Called at 0, done at 1.0; the rank came to wait for it at 0.75."""
    step = StepTraffic(1, 2.0)
    call = MeteredCall(REDUCE, [(0.0, 0.0), (0.75, 1.0)], done=1.0)
    read(step, [call], HostMoments())
    assert (step.in_calls["reduce"], step.still, step.hidden) == (1.0, 0.25, 0.75)
    # One that was done before anybody waited is hidden as a whole.
    read(step, [MeteredCall(REDUCE, [(1.0, 1.0), (3.0, 3.0)], done=1.5)], HostMoments())
    assert step.hidden == pytest.approx(1.25)


def test_seconds_in_which_several_are_under_way_count_once() -> None:
    """Each of three begins before the last one is done: 2 s, not 1.5 + 1 + 0.75."""
    step, gather = StepTraffic(1, 3.0), Carried("gather", "all", 1000.0)
    calls = [
        MeteredCall(REDUCE, [(0.0, 0.0), (1.25, 1.5)], done=1.5),
        MeteredCall(REDUCE, [(0.25, 0.25), (1.5, 1.5)], done=1.25),
        MeteredCall(gather, [(1.25, 1.25), (1.5, 2.0)], done=2.0),
    ]
    read(step, calls, HostMoments())
    assert (step.in_calls["reduce"], step.in_calls["gather"]) == (1.5, 0.5)
    assert (step.still, step.hidden) == (0.75, 1.25)


def test_at_a_boundary_only_the_wait_counts() -> None:
    """A receive is posted long before the neighbour has anything to send."""
    step = StepTraffic(1, 2.0)
    read(step, [MeteredCall(HERE, [(5.0, 5.0), (6.0, 6.25)], later=True)], HostMoments())
    assert (step.in_calls["boundary"], step.still) == (0.25, 0.25)
    assert step.timed == [TimedCall("two", 3, 0.0, 7, True, ((0.0, 0.0), (1.0, 1.25)))]


def test_a_step_without_calls_has_none() -> None:
    step = StepTraffic(1, 2.0)
    read(step, [MeteredCall(REDUCE)], HostMoments())  # it has raised
    assert (step.still, step.timed) == (0.0, [])


def test_it_is_read_when_all_has_passed() -> None:
    class Later(HostMoments):
        def passed(self, moment: float) -> bool:
            return moment <= 1.0

    soon = MeteredCall(REDUCE, [(0.0, 0.5)])
    assert can_be_read([soon], Later())
    assert not can_be_read([soon, MeteredCall(REDUCE, [(0.0, 0.5)], done=2.0)], Later())
    assert not can_be_read([soon, MeteredCall(REDUCE, [(0.0, 1.5)])], Later())
