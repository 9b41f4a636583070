"""All ranks' traffic of an epoch, and whose time it was that a collective took.

A collective ends on all ranks at about the same time, and the last rank to call it waits only for
the data. A rank that called it earlier has waited for others as well: for the seconds by which its
call took longer than the shortest one. No rank knows that alone, so the ranks keep the times of
their newest steps and compare them at the end of an epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from yolods.stats import CommunicationStats, RankCommunication
from yolods.traffic.carried import TRAFFIC_KINDS
from yolods.traffic.measured import StepTraffic
from yolods.traffic.theory import Need

KEPT_CALLS = 4096
"""Calls whose times a rank keeps for the comparison: those of its newest steps."""


@dataclass
class RankShare:
    """One rank's sums over the steps of an epoch."""

    steps: int = 0
    seconds: float = 0.0
    """Of all its steps."""
    sent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TRAFFIC_KINDS, 0.0))
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TRAFFIC_KINDS, 0))
    in_calls: float = 0.0
    hidden: float = 0.0
    held: float = 0.0
    peers: dict[int, float] = field(default_factory=dict)
    between: float = 0.0
    """Bytes sent outside of steps."""
    newest: tuple[StepTraffic, ...] = ()
    """Steps to compare with those of the other ranks."""


class EpochTraffic:
    """Adds this rank's steps up."""

    def __init__(self) -> None:
        self._sums, self.between = RankShare(), 0.0
        self._kept: deque[StepTraffic] = deque()
        self._kept_calls = 0
        self.newest: StepTraffic | None = None
        """The last step that was added."""

    def add(self, step: StepTraffic) -> None:
        """Add a step whose seconds have been read."""
        sums = self._sums
        sums.steps, sums.seconds = sums.steps + 1, sums.seconds + step.seconds
        for kind in TRAFFIC_KINDS:
            sums.sent[kind] += step.sent[kind]
            sums.calls[kind] += step.calls[kind]
        sums.in_calls += sum(step.in_calls.values())
        sums.hidden, sums.held = sums.hidden + step.hidden, sums.held + step.held
        for peer, sent in step.peers.items():
            sums.peers[peer] = sums.peers.get(peer, 0.0) + sent
        self.newest = step
        self._kept.append(step)
        self._kept_calls += _compared(step)
        while self._kept_calls > KEPT_CALLS and len(self._kept) > 1:
            self._kept_calls -= _compared(self._kept.popleft())

    def take(self) -> RankShare:
        """The sums, which begin anew."""
        share, self._sums = self._sums, RankShare()
        share.between, self.between = self.between, 0.0
        share.newest = tuple(self._kept)
        self._kept.clear()
        self._kept_calls = 0
        return share


def _compared(step: StepTraffic) -> int:
    return sum(map(len, step.groups.values()))


def combine(shares: Sequence[RankShare], need: Need | None) -> CommunicationStats | None:
    """What an epoch's communication was; None if no step was measured.

    Args:
        shares: every rank's, in their order.
        need: what theory asks for.
    """
    if not all(share.steps for share in shares):
        return None
    steps = [share.steps for share in shares]
    ranks = tuple(
        RankCommunication(
            rank=rank,
            sent={kind: each / share.steps for kind, each in share.sent.items()},
            calls={kind: each / share.steps for kind, each in share.calls.items()},
            held=share.held / max(share.seconds, 1e-9),
            waiting=waiting,
            boundaries={peer: each / share.steps for peer, each in share.peers.items()},
            between=share.between,
        )
        for rank, (share, waiting) in enumerate(zip(shares, waits(shares), strict=True))
    )
    in_calls = sum(share.in_calls for share in shares)
    hidden = sum(share.hidden for share in shares)
    return CommunicationStats(
        ranks=ranks,
        seconds=in_calls / sum(steps),
        step_seconds=sum(share.seconds for share in shares) / sum(steps),
        hidden=hidden / in_calls if in_calls else 0.0,
        needed=None if need is None else need.sent,
        layout="" if need is None else need.layout,
    )


def waits(shares: Iterable[RankShare]) -> list[float]:
    """Share of its newest steps in which each rank waited for others, in [0, 1].

    At the boundary of a pipeline's stage all of the time counts: nobody knows whether the neighbour
    was at work or its data under way.
    """
    ranks = [{step.step: step for step in share.newest} for share in shares]
    common = set.intersection(*(set(steps) for steps in ranks))
    waited, whole = [0.0] * len(ranks), [0.0] * len(ranks)
    for number in common:
        together = [steps[number] for steps in ranks]
        shortest = shortest_calls(
            [
                {group: [call.seconds for call in calls] for group, calls in step.groups.items()}
                for step in together
            ]
        )
        for rank, step in enumerate(together):
            whole[rank] += step.seconds
            waited[rank] += step.at_boundaries
            for group, calls in step.groups.items():
                for call, least in zip(calls, shortest.get(group, ()), strict=False):
                    waited[rank] += min(call.held, max(call.seconds - least, 0.0))
    return [
        min(part / seconds, 1.0) if seconds else 0.0
        for part, seconds in zip(waited, whole, strict=True)
    ]


def shortest_calls(ranks: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The least seconds of each call over the ranks, by group: the last rank to make a call waits
    for no other.

    Args:
        ranks: of each rank the seconds of its calls by group, in their order. If the ranks of a
            group differ in the number, nobody knows which belong together: it has none.
    """
    found: dict[str, list[float]] = {}
    for group in {group for own in ranks for group in own}:
        calls = [own[group] for own in ranks if group in own]
        if len({len(each) for each in calls}) == 1:
            found[group] = [min(same) for same in zip(*calls, strict=True)]
    return found
