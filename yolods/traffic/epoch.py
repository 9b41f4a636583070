"""All ranks' traffic of an epoch, and whose time it was that a collective took.

A rank stands still in a call because its data is on the way, or because another rank is not there
yet. No rank can tell the two apart alone, so the ranks keep the calls of their newest steps and
compare them at the end of an epoch (`replay`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from yolods.stats import CommunicationStats, RankCommunication
from yolods.traffic.carried import TRAFFIC_KINDS
from yolods.traffic.measured import StepTraffic
from yolods.traffic.replay import replayed_waits
from yolods.traffic.theory import Need

KEPT_CALLS = 4096
"""Calls whose times a rank keeps for the comparison: those of its newest steps."""
COMPARED_CALLS = 16384
"""Calls of all ranks that are compared, but at least one step: a fraction of a second's work."""


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
    still: float = 0.0
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
        sums.hidden, sums.still = sums.hidden + step.hidden, sums.still + step.still
        for peer, sent in step.peers.items():
            sums.peers[peer] = sums.peers.get(peer, 0.0) + sent
        self.newest = step
        self._kept.append(step)
        self._kept_calls += len(step.timed)
        while self._kept_calls > KEPT_CALLS and len(self._kept) > 1:
            self._kept_calls -= len(self._kept.popleft().timed)

    def take(self) -> RankShare:
        """The sums, which begin anew."""
        share, self._sums = self._sums, RankShare()
        share.between, self.between = self.between, 0.0
        share.newest = tuple(self._kept)
        self._kept.clear()
        self._kept_calls = 0
        return share


def combine(shares: Sequence[RankShare], need: Need | None) -> CommunicationStats | None:
    """What an epoch's communication was; None if no step was measured.

    Args:
        shares: every rank's, in their order.
        need: what theory asks for.
    """
    if not all(share.steps for share in shares):
        return None
    steps = [share.steps for share in shares]
    waited = divided(shares)
    parts = enumerate(zip(shares, waited or [0.0] * len(shares), strict=True))
    ranks = tuple(_of_rank(rank, share, part) for rank, (share, part) in parts)
    in_calls = sum(share.in_calls for share in shares)
    hidden = sum(share.hidden for share in shares)
    return CommunicationStats(
        ranks=ranks,
        seconds=in_calls / sum(steps),
        step_seconds=sum(share.seconds for share in shares) / sum(steps),
        hidden=hidden / in_calls if in_calls else 0.0,
        needed=None if need is None else need.sent,
        layout="" if need is None else need.layout,
        told_apart=waited is not None,
    )


def _of_rank(rank: int, share: RankShare, waited: float) -> RankCommunication:
    """Means of a rank, which waited for others in a part of the time that it stood still."""
    still = share.still / max(share.seconds, 1e-9)
    return RankCommunication(
        rank=rank,
        sent={kind: each / share.steps for kind, each in share.sent.items()},
        calls={kind: each / share.steps for kind, each in share.calls.items()},
        held=still * (1 - waited),
        waiting=still * waited,
        boundaries={peer: each / share.steps for peer, each in share.peers.items()},
        between=share.between,
    )


def divided(shares: Sequence[RankShare]) -> list[float] | None:
    """Share of the time that each rank stood still, in which it waited for others, in [0, 1]: in
    the newest steps that all of them have kept. None if no such step could be compared."""
    ranks = [{step.step: step for step in share.newest} for share in shares]
    waited, still, left = [0.0] * len(ranks), [0.0] * len(ranks), COMPARED_CALLS
    compared = False
    for number in sorted(set.intersection(*map(set, ranks)), reverse=True):
        together = [steps[number] for steps in ranks]
        found = replayed_waits([step.timed for step in together])
        if found is not None:
            compared = True
            for rank, step in enumerate(together):
                waited[rank] += min(found[rank], step.still)
                still[rank] += step.still
        left -= sum(len(step.timed) for step in together)
        if left <= 0:
            break
    if not compared:
        return None
    return [part / whole if whole else 0.0 for part, whole in zip(waited, still, strict=True)]
