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
from yolods.traffic.epoch import shortest_calls

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
    "gradients": "ours",
    "a snapshot": "snapshot",
    "the optimizer": "optimizer",
    "the average": "ours",
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
    """The records, whose calls know how long they waited for other ranks.

    A collective ends on all ranks at about the same time, and the last one to call it waits only
    for its data. So a rank has waited for others as long as its call took longer than the shortest
    one. Of a send or receive nobody knows when the other rank was there: all of it counts.
    """
    shortest = shortest_calls([_durations(record) for record in records])
    return tuple(_waited(record, shortest) for record in records)


def _durations(record: RankRecord) -> dict[str, list[float]]:
    """Seconds of a rank's collectives by group."""
    found: dict[str, list[float]] = {}
    for call in record.calls:
        if call.peer is None and call.group:
            found.setdefault(call.group, []).append(call.end - call.begin)
    return found


def _waited(record: RankRecord, shortest: dict[str, list[float]]) -> RankRecord:
    least = {group: iter(each) for group, each in shortest.items()}
    calls = []
    for call in record.calls:
        held = sum(end - begin for begin, end in call.held)
        waited = 0.0
        if call.peer is not None:
            waited = held
        elif call.group in least:
            waited = min(held, max(call.end - call.begin - next(least[call.group]), 0.0))
        calls.append(replace(call, waited=waited))
    return replace(record, calls=tuple(calls))


def halves(call: CallRecord) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """A call's held spans: those in which it waited for other ranks, and those for its data."""
    waits, moves, left = [], [], call.waited
    for begin, end in call.held:
        apart = begin + min(left, end - begin)
        left -= apart - begin
        waits += [(begin, apart)] if apart > begin else []
        moves += [(apart, end)] if end > apart else []
    return waits, moves
