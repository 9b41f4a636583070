"""A pipeline's passes as they ran in a step, and as they would run without any delay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolods.plan.one_f_one_b import Instruction, instructions
from yolods.plan.zero_bubble import passes
from yolods.trace.record import RankRecord
from yolods.trace.shares import WAITS, stretches

_LETTERS = {"forward": "F", "backward": "B", "weights": "W"}


@dataclass(frozen=True)
class Pass:
    """One pass of a micro-batch through a stage."""

    what: Instruction
    """Its kind and micro-batch."""
    begin: float
    """Seconds since the step's first pass began."""
    busy: float
    """Seconds that it computed."""

    @property
    def end(self) -> float:
        """Where it ends if nothing interrupts it."""
        return self.begin + self.busy


def stages_in(records: Sequence[RankRecord], replica: int = 0) -> list[RankRecord]:
    """The ranks of one replica, by their stage."""
    found = [record for record in records if record.replica == replica]
    return sorted(found, key=lambda record: record.stage)


def as_run(stages: Sequence[RankRecord], step: int) -> list[list[Pass]]:
    """The passes of a step on each stage, in order; without the time that they stood still."""
    rows: list[dict[Instruction, Pass]] = []
    for record in stages:
        row: dict[Instruction, Pass] = {}
        for each in stretches(record):
            letter = _LETTERS.get(each.part.phase)
            if each.part.step != step or letter is None or each.kind == WAITS:
                continue
            what: Instruction = (letter, each.part.number or 0)  # type: ignore[assignment]
            before = row.get(what, Pass(what, each.begin, 0.0))
            row[what] = Pass(what, before.begin, before.busy + each.seconds)
        rows.append(row)
    start = min((each.begin for row in rows for each in row.values()), default=0.0)
    return [[Pass(e.what, e.begin - start, e.busy) for e in row.values()] for row in rows]


def ideal(rows: Sequence[Sequence[Pass]], schedule: str) -> list[list[Pass]]:
    """The same passes with the same durations: each begins as soon as its stage is free and what it
    needs is there, and sends take no time.

    Args:
        rows: passes of each stage.
        schedule: the order of the passes, "1f1b" or "zb".
    """
    stages = len(rows)
    micro_batches = sum(each.what[0] == "F" for each in rows[0])
    order = passes if schedule == "zb" else instructions
    seconds = [{each.what: each.busy for each in row} for row in rows]
    left = [list(order(stages, stage, micro_batches)) for stage in range(stages)]
    done: list[dict[Instruction, float]] = [{} for _ in rows]
    free, found = [0.0] * stages, [[] for _ in rows]
    while any(left):
        for stage in range(stages):
            while left[stage] and (ready := _ready(left[stage][0], stage, done)) is not None:
                what = left[stage].pop(0)
                one = Pass(what, max(free[stage], ready), seconds[stage].get(what, 0.0))
                free[stage] = done[stage][what] = one.end
                found[stage].append(one)
    return found


def _ready(what: Instruction, stage: int, done: Sequence[dict[Instruction, float]]) -> float | None:
    """When a pass has what it needs from other stages; None: not known yet."""
    kind, _ = what
    other = stage + {"F": -1, "B": 1, "W": 0}[kind]
    if kind == "W" or not 0 <= other < len(done):
        return 0.0
    return done[other].get(what)


def makespan(rows: Sequence[Sequence[Pass]]) -> float:
    """Seconds from the first pass's beginning to the last one's end."""
    return max((each.end for row in rows for each in row), default=0.0)


def idle_share(rows: Sequence[Sequence[Pass]]) -> float:
    """Share of the stages' time in which none of their passes runs, in [0, 1]."""
    whole = makespan(rows) * len(rows)
    return 1 - sum(each.busy for row in rows for each in row) / whole if whole else 0.0
