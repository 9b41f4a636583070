"""Steps replayed without the time of their links, against steps whose links took none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from yolods.plan.one_f_one_b import instructions
from yolods.traffic.replay import TimedCall, replayed_waits

FORWARD, BACKWARD = (6.0, 7.0, 5.0, 6.5), (12.0, 13.0, 11.0, 12.0)
"""Seconds of a micro-batch on each stage."""


class Stage:
    """A rank of a pipeline whose calls are timed by its own clock."""

    def __init__(self, begins: float, ahead: float) -> None:
        self.now, self.ahead = begins, ahead
        self.calls: list[TimedCall] = []

    def call(self, peer: int | None, sent: float, tag: int, *until: float) -> None:
        """A call that returns at once, and a wait for each of `until`."""
        spans = [(self.now, self.now)]
        for end in until:
            spans.append((self.now, max(self.now, end)))
            self.now = spans[-1][1]
        own = tuple((begin + self.ahead, end + self.ahead) for begin, end in spans)
        self.calls.append(TimedCall("two", peer, sent, tag, True, own))

    def meet(self, group: str, end: float) -> None:
        """A collective that waits."""
        own = ((self.now + self.ahead, end + self.ahead),)
        self.calls.append(TimedCall(group, None, 8.0, 0, False, own))
        self.now = end


def pipeline(
    stages: int, micro_batches: int, link: float, late: float = 0.0
) -> tuple[list[list[TimedCall]], float]:
    """The calls of each stage in a 1F1B step whose messages take `link`, and its seconds.

    Args:
        late: how much later the last stage begins than the others.
    """
    begins = [late * (stage == stages - 1) for stage in range(stages)]
    ranks = [Stage(begin, 100.0 * stage) for stage, begin in enumerate(begins)]
    left = [list(instructions(stages, stage, micro_batches)) for stage in range(stages)]
    sent: dict[tuple[str, int, int], float] = {}
    while any(left):
        for stage, own in enumerate(ranks):
            while left[stage]:
                kind, number = left[stage][0]
                forth = 1 if kind == "F" else -1
                tag = 1 if kind == "F" else 2
                if 0 <= stage - forth < stages:
                    if (kind, stage - forth, number) not in sent:
                        break
                    own.call(stage - forth, 0.0, tag, sent[kind, stage - forth, number] + link)
                own.now += (FORWARD if kind == "F" else BACKWARD)[stage]
                if 0 <= stage + forth < stages:
                    sent[kind, stage, number] = own.now
                    own.call(stage + forth, 8.0, tag)
                left[stage].pop(0)
    end = max(own.now for own in ranks)
    for own in ranks:
        own.meet("all", end)
    return [own.calls for own in ranks], end


def still(calls: Sequence[TimedCall]) -> float:
    return sum(end - begin for call in calls for begin, end in call.held)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("link", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("late", [0.0, 30.0])
def test_what_is_no_wait_for_others_is_what_faster_links_would_save(
    stages: int, link: float, late: float
) -> None:
    """On every stage, also for waits that a late message has caused only later and elsewhere."""
    _, quickest = pipeline(stages, 6, 0.0, late)
    ranks, seconds = pipeline(stages, 6, link, late)
    waits = replayed_waits(ranks)
    assert waits is not None
    for calls, waited in zip(ranks, waits, strict=True):
        assert still(calls) - waited == pytest.approx(seconds - quickest)


def test_replicas_of_stages_meet_in_groups_of_their_own() -> None:
    """Two pipelines, the second of which begins later: the first one's stages wait for it."""
    ranks: list[Stage] = []
    for replica, begins in enumerate((0.0, 10.0)):
        first, second = Stage(begins, 3.0), Stage(begins, 50.0)
        first.now += 6.0
        first.call(2 * replica + 1, 8.0, 1)
        second.call(2 * replica, 0.0, 1, first.now + 2.0)
        second.now += 7.0
        second.call(2 * replica, 8.0, 2)
        first.call(2 * replica + 1, 0.0, 2, second.now + 2.0)
        ranks += [first, second]
    for stage, group in enumerate(("first", "second")):
        members = ranks[stage::2]
        end = max(each.now for each in members) + 1.0
        for each in members:
            each.meet(group, end)
    end = max(each.now for each in ranks)
    for each in ranks:
        each.meet("all", end)
    # Without links: 6 s of the first stage, 7 s of the second, and 10 s for the second replica.
    assert replayed_waits([each.calls for each in ranks]) == pytest.approx([7 + 10, 6 + 10, 7, 6])


def call(*held: tuple[float, float], later: bool = False, group: str = "all") -> TimedCall:
    return TimedCall(group, None, 8.0, 0, later, held)


def test_a_collective_beside_the_ranks_own_work_is_waited_for_later() -> None:
    """Both waited from 5 on for data that was long on its way; one had called it at 4."""
    last = call((9.0, 9.0))
    early, late = [call((1, 1), (5, 9), later=True), last], [call((4, 4), (5, 9), later=True), last]
    assert replayed_waits([early, late]) == [0.0, 0.0]
    late = [call((7, 7), (8, 9), later=True), last]
    assert replayed_waits([early, late]) == [2.0 + 1.0, 0.0]


def test_a_work_that_nobody_waited_for_holds_nobody() -> None:
    early, late = [call((1, 1), later=True), call((2, 9))], [call((8, 8), later=True), call((9, 9))]
    assert replayed_waits([early, late]) == [7.0, 0.0]


def test_calls_of_several_threads_may_overlap() -> None:
    """Time that two of them share counts once."""
    early = [call((0, 4)), call((1, 3), group="pair"), call((5, 6))]
    late = [call((2, 4)), call((2.5, 3), group="pair"), call((5, 6))]
    assert replayed_waits([early, late]) == [2.0, 0.0]


def test_moments_that_a_device_cannot_tell_apart_keep_their_order() -> None:
    """The call and the wait for it, and what was sent just before a wait."""
    beside = [call((5, 5), (5, 5), later=True), call((6, 7))]
    assert replayed_waits([beside, beside]) == [0.0, 0.0]
    asking = [
        TimedCall("two", 1, 0.0, 0, True, ((0.0, 0.0), (1.0, 4.0))),
        TimedCall("two", 1, 8.0, 0, True, ((1.0, 1.0),)),
        call((4, 5)),
    ]
    answering = [
        TimedCall("two", 0, 0.0, 0, True, ((0.0, 0.0), (0.0, 1.5))),
        TimedCall("two", 0, 8.0, 0, True, ((3.5, 3.5),)),
        call((4, 5)),
    ]
    assert replayed_waits([asking, answering]) == pytest.approx([2.0 + 0.5, 1.0])


def test_what_cannot_have_happened_is_not_divided() -> None:
    """Each waits for what the other one sends after it."""
    ranks = [
        [
            TimedCall("two", 1 - rank, 0.0, 0, False, ((0.0, 1.0),)),
            TimedCall("two", 1 - rank, 8.0, 0, False, ((2.0, 2.0),)),
        ]
        for rank in range(2)
    ]
    assert replayed_waits(ranks) is None
    assert replayed_waits([[], []]) == [0.0, 0.0]
