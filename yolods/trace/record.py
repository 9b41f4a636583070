"""What one rank did in the traced steps, as plain values that travel to rank 0.

Times are seconds of a clock: first of the rank's own, after `clocks` of rank 0's.

    part    from one mark of the main thread to the next (`distributed.phases`); parts follow each
            other without gaps, so a step's parts add up to the step
    call    a call of torch.distributed (`traffic.meter`), within parts or across several
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from yolods.distributed.phases import Mark
from yolods.traffic.matching import needed_calls

STEP_TRACK = "steps"
"""The track of whole steps."""
REST_TRACK = "between steps"
"""The track of parts that no other one takes."""
TRACKS = {
    "data": "loader",
    "forward": "forward",
    "backward": "backward",
    "weights": "weights' part of backward",
    "boundary": "neighbouring stages",
    "reduction": "reduction of gradients",
    "gradients": "verdict and average",
    "a snapshot": "snapshot",
    "the optimizer": "optimizer",
    "the average": "verdict and average",
    "a checkpoint": "checkpoint",
    "writing a checkpoint": "checkpoint",
    "waiting for a checkpoint": "checkpoint",
    "writing weights": "checkpoint",
    "evaluation": "evaluation",
    "adding up the evaluation": "evaluation",
    "the evaluation's results": "evaluation",
    "statistics": "evaluation",
}
"""Phases -> the tracks on which they are drawn; all others: `REST_TRACK`."""
_STEP_PHASES = (
    *("data", "forward", "backward", "weights", "boundary", "reduction"),
    *("gradients", "a snapshot", "the optimizer", "the average"),
)
"""Phases of a step itself; what follows the last of them lies between it and the next step."""


@dataclass(frozen=True)
class Part:
    """What the main thread did between two marks."""

    begin: float
    """Seconds."""
    end: float
    """Seconds."""
    phase: str
    """As it was marked."""
    number: int | None
    """Index of its micro-batch or batch."""
    step: int
    """Optimizer step, from 1."""

    @property
    def track(self) -> str:
        """Where it is drawn."""
        return TRACKS.get(self.phase, REST_TRACK)


@dataclass(frozen=True)
class CallRecord:
    """One call of torch.distributed on one rank."""

    kind: str
    """reduce, gather, boundary or ours."""
    group: str
    """Name of the group, the same on all its ranks; "": not known."""
    sent: float
    """Bytes that this rank sends."""
    peer: int | None
    """The other rank of a send or receive."""
    begin: float
    """Seconds, when it was called."""
    end: float
    """Seconds, when its data had arrived, or when the rank went on."""
    held: tuple[tuple[float, float], ...]
    """Spans in which the rank stood still in it."""
    waited: float = 0.0
    """Seconds of `held`, from their beginning, in which another rank had not called it yet."""
    tag: int = 0
    """That of a send or receive."""


@dataclass(frozen=True)
class RankRecord:
    """All of one rank."""

    rank: int
    """Its number in the world."""
    host: str
    """Name of its host."""
    stage: int
    """Its stage of a pipeline; 0 without one."""
    replica: int
    """Its replica of the model."""
    parts: tuple[Part, ...]
    """In their order, without gaps."""
    calls: tuple[CallRecord, ...]
    """In the order in which they were called."""

    def steps(self) -> tuple[int, ...]:
        """The traced steps, in their order."""
        return tuple(dict.fromkeys(part.step for part in self.parts))

    def bounds(self, step: int) -> tuple[float, float]:
        """Begin and end of a step in seconds: the next one begins where it ends."""
        parts = [part for part in self.parts if part.step == step]
        return parts[0].begin, parts[-1].end

    def own_end(self, step: int) -> float:
        """Where a step itself ends, in seconds: an evaluation, a checkpoint and the like follow."""
        parts = [part for part in self.parts if part.step == step]
        own = (part.end for part in parts if part.phase in _STEP_PHASES)
        return max(own, default=parts[-1].end)


def parts_between(marks: Sequence[tuple[float, Mark]], end: float) -> tuple[Part, ...]:
    """The parts between marks; those that took no time are left out.

    Args:
        marks: seconds and mark, in their order.
        end: seconds, where the last one ends.
    """
    ends = [*(seconds for seconds, _ in marks[1:]), end]
    return tuple(
        Part(begin, after, mark.phase, mark.number, mark.step)
        for (begin, mark), after in zip(marks, ends, strict=True)
        if after > begin
    )


def with_waits(records: Sequence[RankRecord]) -> tuple[RankRecord, ...]:
    """The records, whose calls know how long they waited for other ranks: until the last call that
    they need was made, of a collective on all its ranks, of a receive the send.

    Args:
        records: all ranks, in their order and on one clock.
    """
    needs = needed_calls([record.calls for record in records])
    return tuple(
        replace(
            record,
            calls=tuple(
                replace(call, waited=_waited(call, [records[a].calls[b].begin for a, b in needed]))
                for call, needed in zip(record.calls, own, strict=True)
            ),
        )
        for record, own in zip(records, needs, strict=True)
    )


def _waited(call: CallRecord, begun: Sequence[float]) -> float:
    """Seconds that a call stood still before the last of those that it needs had begun."""
    last = max(begun, default=call.begin)
    return sum(max(min(end, last) - begin, 0.0) for begin, end in call.held)


def halves(call: CallRecord) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """A call's held spans: those in which it waited for other ranks, and those for its data."""
    waits, moves, left = [], [], call.waited
    for begin, end in call.held:
        apart = begin + min(left, end - begin)
        left -= apart - begin
        waits += [(begin, apart)] if apart > begin else []
        moves += [(apart, end)] if end > apart else []
    return waits, moves
