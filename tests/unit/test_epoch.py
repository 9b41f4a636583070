"""An epoch of several ranks, and who waited for whom."""

from __future__ import annotations

import pytest

from yolods.traffic.carried import Carried
from yolods.traffic.epoch import KEPT_CALLS, EpochTraffic, RankShare, combine, waits
from yolods.traffic.measured import CallTimes, StepTraffic, count
from yolods.traffic.theory import Need


def step(number: int, *calls: tuple[float, float], boundary: float = 0.0) -> StepTraffic:
    """Of two seconds, with collectives of (seconds, held)."""
    found = StepTraffic(number, 2.0)
    for seconds, held in calls:
        count(found, Carried("reduce", "all", 1e6))
        found.in_calls["reduce"] += seconds
        found.held += held
    found.groups["all"] = [CallTimes(*each) for each in calls]
    if boundary:
        count(found, Carried("boundary", "two", 5e5, 1))
        found.held, found.at_boundaries = found.held + boundary, boundary
    return found


def share(*steps: StepTraffic) -> RankShare:
    epoch = EpochTraffic()
    for each in steps:
        epoch.add(each)
    return epoch.take()


def test_the_last_to_come_waits_for_nobody() -> None:
    """The data takes 0.1 s; rank 1 came 0.5 s after rank 0 to the first call, and before it to the
    second."""
    first = share(step(1, (0.6, 0.6), (0.1, 0.1)))
    second = share(step(1, (0.1, 0.1), (0.3, 0.3)))
    assert waits([first, second]) == pytest.approx([0.5 / 2, 0.2 / 2])


def test_what_is_hidden_is_no_wait() -> None:
    first, second = share(step(1, (0.6, 0.05))), share(step(1, (0.1, 0.1)))
    assert waits([first, second]) == pytest.approx([0.05 / 2, 0.0])


def test_at_a_boundary_all_of_it_counts() -> None:
    assert waits([share(step(1, boundary=0.5)), share(step(1))]) == [0.25, 0.0]


def test_only_steps_that_all_have_kept_are_compared() -> None:
    first = share(step(1, (9.0, 9.0)), step(2, (0.6, 0.6)))
    assert waits([first, share(step(2, (0.1, 0.1)), step(3, (5.0, 5.0)))]) == [0.25, 0.0]
    assert waits([first, share(step(3, (0.1, 0.1)))]) == [0.0, 0.0]


def test_calls_that_differ_are_not_compared() -> None:
    assert waits([share(step(1, (0.6, 0.6))), share(step(1, (0.1, 0.1), (0.1, 0.1)))]) == [0, 0]


def test_means_per_step_and_rank() -> None:
    first = share(step(1, (0.5, 0.25)), step(2, (0.5, 0.25), boundary=0.25))
    second = share(step(1, (0.5, 0.25)), step(2, (0.5, 0.25)))
    found = combine([first, second], Need(5e5, "ZeRO-1 needs 2P"))
    assert found is not None
    assert (found.sent, found.calls) == ((2.5e6 / 2 + 1e6) / 2, 1.25)
    assert (found.seconds, found.step_seconds, found.hidden) == (0.5, 2.0, 0.375)
    assert (found.needed, found.layout) == (5e5, "ZeRO-1 needs 2P")
    assert [rank.held for rank in found.ranks] == [0.75 / 4, 0.5 / 4]
    assert [dict(rank.boundaries) for rank in found.ranks] == [{1: 2.5e5}, {}]
    assert found.waiting == pytest.approx((0.25 / 4 + 0.0) / 2)


def test_an_epoch_without_a_step_says_nothing() -> None:
    assert combine([share(), share()], None) is None


def test_few_times_are_kept() -> None:
    epoch = EpochTraffic()
    for number in range(5):
        epoch.add(step(number, *[(0.1, 0.1)] * (KEPT_CALLS // 2)))
    kept = epoch.take()
    assert ([each.step for each in kept.newest], kept.steps) == ([3, 4], 5)
    assert epoch.take().newest == (), "an epoch begins anew"
