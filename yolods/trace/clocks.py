"""By how much each rank's clock is ahead of rank 0's, from messages that go back and forth.

Rank 0 sends a message at s, the other rank answers with its clock's time t, and the answer arrives
at a. The other clock is ahead by t - s at most and by t - a at least; their middle is off by half
of the round trip at most. Of several rounds the fastest counts. This is the estimate of Cristian
1989 (doi:10.1007/BF01784024). Two readings, before and after the traced steps, tell by how much the
clocks drift apart meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from yolods.distributed.world import Ranks
from yolods.trace.record import RankRecord

ROUNDS = 16
"""Round trips for each rank."""


@dataclass(frozen=True)
class Reading:
    """One comparison of a rank's clock with that of rank 0."""

    shown: float
    """Seconds of the rank's clock."""
    ahead: float
    """Seconds by which it is ahead of rank 0's."""
    error: float
    """Seconds by which `ahead` is wrong at most."""


def best_reading(rounds: Sequence[tuple[float, float, float]]) -> Reading:
    """The reading of the fastest round.

    Args:
        rounds: when rank 0 sent, what the other clock showed, when the answer arrived; in seconds.
    """
    sent, shown, arrived = min(rounds, key=lambda each: each[2] - each[0])
    return Reading(shown, shown - (sent + arrived) / 2, (arrived - sent) / 2)


@dataclass(frozen=True)
class RankClock:
    """A rank's clock during the traced steps."""

    before: Reading
    """Before the first of them."""
    after: Reading
    """After the last one."""

    @property
    def error(self) -> float:
        """Seconds by which times of this rank may be shifted against rank 0's."""
        return max(self.before.error, self.after.error)

    @property
    def drift(self) -> float:
        """Seconds by which the clock has gained on rank 0's between the readings."""
        return self.after.ahead - self.before.ahead

    def on_main(self, seconds: float) -> float:
        """A time of this clock on rank 0's; the drift is taken to be even."""
        between = self.after.shown - self.before.shown
        share = (seconds - self.before.shown) / between if between > 0 else 0.0
        return seconds - self.before.ahead - share * self.drift

    def move(self, record: RankRecord) -> RankRecord:
        """A record with all times on rank 0's clock."""
        at = self.on_main
        return replace(
            record,
            parts=tuple(replace(e, begin=at(e.begin), end=at(e.end)) for e in record.parts),
            calls=tuple(
                replace(
                    call,
                    begin=at(call.begin),
                    end=at(call.end),
                    held=tuple((at(begin), at(end)) for begin, end in call.held),
                )
                for call in record.calls
            ),
        )


def compare_clocks(ranks: Ranks, clock: Callable[[], float] = time.perf_counter) -> list[Reading]:
    """Readings of all ranks' clocks on rank 0, in their order; empty on the others. A collective.

    All ranks leave it at about the same time.
    """
    readings = [Reading(clock(), 0.0, 0.0)] if ranks.is_main else []
    for other in range(1, ranks.size):
        if ranks.is_main:
            readings.append(best_reading([_ask(ranks, other, clock) for _ in range(ROUNDS)]))
        elif ranks.rank == other:
            for _ in range(ROUNDS):
                _answer(ranks, clock)
    ranks.barrier()
    return readings


def _ask(ranks: Ranks, other: int, clock: Callable[[], float]) -> tuple[float, float, float]:
    box = torch.zeros(1, dtype=torch.float64)
    sent = clock()
    dist.send(box, other, group=ranks.host_group)
    dist.recv(box, other, group=ranks.host_group)
    return sent, box.item(), clock()


def _answer(ranks: Ranks, clock: Callable[[], float]) -> None:
    box = torch.zeros(1, dtype=torch.float64)
    dist.recv(box, 0, group=ranks.host_group)
    box[0] = clock()
    dist.send(box, 0, group=ranks.host_group)
