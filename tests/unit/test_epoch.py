"""An epoch of several ranks, and who waited for whom."""

from __future__ import annotations

import pytest

from yolods.traffic import epoch as module
from yolods.traffic.carried import Carried
from yolods.traffic.epoch import KEPT_CALLS, EpochTraffic, RankShare, combine, divided
from yolods.traffic.measured import StepTraffic, count
from yolods.traffic.replay import TimedCall
from yolods.traffic.theory import Need


def step(number: int, *spans: tuple[float, float], boundary: float = 0.0) -> StepTraffic:
    """Of two seconds, with collectives in which the rank stood still."""
    found = StepTraffic(number, 2.0)
    for begin, end in spans:
        count(found, Carried("reduce", "all", 1e6))
        found.in_calls["reduce"] += end - begin
        found.still += end - begin
        found.timed.append(TimedCall("all", None, 1e6, 0, False, ((begin, end),)))
    if boundary:
        count(found, Carried("boundary", "two", 5e5, 1))
    return found


def share(*steps: StepTraffic) -> RankShare:
    epoch = EpochTraffic()
    for each in steps:
        epoch.add(each)
    return epoch.take()


EARLY, LATE = ((0.0, 0.6), (0.6, 0.7)), ((0.5, 0.6), (0.6, 0.7))
"""The data takes 0.1 s each time; one rank comes 0.5 s after the other to the first call."""


def test_the_last_to_come_waits_for_nobody() -> None:
    assert divided([share(step(1, *EARLY)), share(step(1, *LATE))]) == pytest.approx([5 / 7, 0.0])


def test_only_steps_that_all_have_kept_are_compared() -> None:
    first = share(step(1, (0.0, 9.0)), step(2, *EARLY))
    assert divided([first, share(step(2, *LATE), step(3, (0.0, 5.0)))]) == pytest.approx([5 / 7, 0])
    assert divided([first, share(step(3, (0.1, 0.1)))]) is None


def test_calls_that_differ_are_not_compared() -> None:
    assert divided([share(step(1, EARLY[0])), share(step(1, *LATE))]) == [0, 0]


def test_without_a_step_to_compare_nothing_is_told_apart() -> None:
    found = combine([share(step(1, *EARLY)), share(step(2, *LATE))], None)
    assert found is not None and not found.told_apart
    assert [rank.held for rank in found.ranks] == pytest.approx([0.7 / 2, 0.2 / 2])
    assert found.waiting == 0


def test_only_so_many_calls_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest steps first, and at least one."""
    first, second = (share(step(1, (0.0, 1.0)), step(2, *spans)) for spans in (EARLY, LATE))
    monkeypatch.setattr(module, "COMPARED_CALLS", 1)
    assert divided([first, second]) == pytest.approx([5 / 7, 0.0])


def test_means_per_step_and_rank() -> None:
    """Rank 0 waits for half a second in one of two steps of two seconds."""
    first = share(step(1, (0.0, 0.6)), step(2, (0.0, 0.2), boundary=0.5))
    second = share(step(1, (0.5, 0.6)), step(2, (0.0, 0.2)))
    found = combine([first, second], Need(5e5, "ZeRO-1 needs 2P"))
    assert found is not None
    assert (found.sent, found.calls) == ((1e6 + 0.25e6 + 1e6) / 2, 1.25)
    assert (found.seconds, found.step_seconds, found.hidden) == (pytest.approx(1.1 / 4), 2.0, 0)
    assert (found.needed, found.layout) == (5e5, "ZeRO-1 needs 2P")
    assert [rank.held for rank in found.ranks] == pytest.approx([0.3 / 4, 0.3 / 4])
    assert [rank.waiting for rank in found.ranks] == pytest.approx([0.5 / 4, 0])
    assert [dict(rank.boundaries) for rank in found.ranks] == [{1: 2.5e5}, {}]
    assert (found.held, found.waiting) == (pytest.approx(0.3 / 4), pytest.approx(0.25 / 4))


def test_an_epoch_without_a_step_says_nothing() -> None:
    assert combine([share(), share()], None) is None


def test_few_times_are_kept() -> None:
    epoch = EpochTraffic()
    for number in range(5):
        epoch.add(step(number, *[(0.1, 0.1)] * (KEPT_CALLS // 2)))
    kept = epoch.take()
    assert ([each.step for each in kept.newest], kept.steps) == ([3, 4], 5)
    assert epoch.take().newest == (), "an epoch begins anew"
