"""What `pipeline.py` asks of its ranks, what they hand back, and the arithmetic and text on it; no
torch in here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.report import BUSY, Spread
from yolods.plan.one_f_one_b import instruction, simulate, slots

BOUND_SHARE = 0.90
"""Target: least share of the bound that a step reaches."""
SAVED = 0.15
"""Target: least share of the stock backward's time that ours saves."""
TOLERANCE = 1e-4
"""Relative, of losses and gradient norms; each way adds up in an order of its own."""
MARK = "> "
"""What begins a line of rank 0 that people are to see."""
VARIABLE = "YOLODS_PIPELINE_BENCHMARK"
OURS, STOCK, DEEPSPEED = "yolods", "yolods, stock backward", "DeepSpeed PipelineEngine"
WAYS = (OURS, STOCK, DEEPSPEED)
BOXES = 12
"""Objects an image: what a blood smear of the BCCD data set holds."""


@dataclass(frozen=True)
class Task:
    """What the ranks are to measure."""

    out: str
    """File for rank 0's `Seen`."""
    model: str
    """Name in yolods' zoo."""
    imgsz: int
    """Image size in pixels."""
    images: int
    """Images a micro-batch."""
    micro_batches: tuple[int, ...]
    """Micro-batches a step, one case each."""
    rounds: int
    """Steps of each way and case that count; one before them does not."""
    ways: tuple[str, ...]
    """Of `WAYS`."""
    cut: str | None
    """What stage 1 begins with, as in a JSON's "partition"; None: the fastest cut by a profile of
    this machine."""
    cores: tuple[int, ...]
    """A core for each rank."""

    @classmethod
    def from_environment(cls) -> Task:
        """The task in this process's environment."""
        found = json.loads(os.environ[VARIABLE])
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in found.items()
            }
        )

    def environment(self) -> dict[str, str]:
        """The variable that hands this task to a rank."""
        return {VARIABLE: json.dumps(asdict(self))}


@dataclass(frozen=True)
class Sample:
    """One step on one stage."""

    way: str
    """Of `WAYS`."""
    micro_batches: int
    """Of the step."""
    round: int
    """From 0."""
    forwards: tuple[float, ...]
    """Seconds of each forward pass, by micro-batch."""
    backwards: tuple[float, ...]
    """Likewise."""
    waiting: float
    """Seconds in which the stage waited for its neighbour; 0 where the way does not tell."""
    pipe: float
    """Seconds from the first instruction to the end of the last backward pass."""
    step: float
    """Seconds of the whole optimizer step."""
    around: float
    """CPU seconds of the 1F1B part outside of the passes, gloo's threads included."""
    busy: float
    """CPU time over wall time of the passes."""
    loss: float
    """Sum of the loss items; 0 where the stage does not know it."""
    norm: float
    """Gradient norm; 0 where the way does not tell."""

    @property
    def forward(self) -> float:
        """Seconds a forward pass, the mean over the step."""
        return sum(self.forwards) / len(self.forwards)

    @property
    def backward(self) -> float:
        """Seconds a backward pass, likewise."""
        return sum(self.backwards) / len(self.backwards)


@dataclass(frozen=True)
class Seen:
    """What rank 0 writes."""

    stages: list[str]
    """The table of stages."""
    crossing: list[str]
    """Names of the values that cross the cut."""
    samples: list[list[Sample]]
    """By rank, in the order of measuring."""

    @classmethod
    def read(cls, path: Path) -> Seen:
        """What the ranks wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            found["stages"],
            found["crossing"],
            [[Sample(**each) for each in rank] for rank in found["samples"]],
        )


@dataclass(frozen=True)
class Pair:
    """The two stages of one step."""

    first: Sample
    """Stage 0."""
    last: Sample
    """Stage 1."""

    @property
    def step(self) -> float:
        """Seconds of the step; both ranks begin it together."""
        return max(self.first.step, self.last.step)

    @property
    def pipe(self) -> float:
        """Seconds of its 1F1B part."""
        return max(self.first.pipe, self.last.pipe)

    @property
    def bound(self) -> float:
        """Seconds that 1F1B takes with passes as long as they were on average."""
        stages = (self.first, self.last)
        return simulate(
            [stage.forward for stage in stages],
            [stage.backward for stage in stages],
            self.first.micro_batches,
        ).makespan

    @property
    def replayed(self) -> float:
        """Seconds that it takes with every pass as long as it was."""
        return replay(
            [self.first.forwards, self.last.forwards], [self.first.backwards, self.last.backwards]
        )


def replay(forwards: Sequence[Sequence[float]], backwards: Sequence[Sequence[float]]) -> float:
    """Seconds of a 1F1B step without transfers whose passes differ.

    Args:
        forwards: seconds by stage and micro-batch.
        backwards: likewise.
    """
    stages, count = len(forwards), len(forwards[0])
    free = [0.0] * stages
    ended: dict[tuple[str, int, int], float] = {}
    for slot in range(slots(stages, count)):
        for stage in range(stages):
            done = instruction(stages, stage, count, slot)
            if done is None:
                continue
            kind, number = done
            seconds, source = (forwards, stage - 1) if kind == "F" else (backwards, stage + 1)
            begun = max(free[stage], ended.get((kind, number, source), 0.0))
            free[stage] = ended[kind, number, stage] = begun + seconds[stage][number]
    return max(free)


class Results:
    """All steps of a run."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.pairs = [Pair(first, last) for first, last in zip(*seen.samples, strict=True)]
        self.counts = sorted({pair.first.micro_batches for pair in self.pairs})

    def of(self, way: str, count: int) -> list[Pair]:
        """A way's steps of `count` micro-batches, round by round."""
        found = (
            pair
            for pair in self.pairs
            if (pair.first.way, pair.first.micro_batches) == (way, count)
        )
        return sorted(found, key=lambda pair: pair.first.round)

    def shares(self, way: str, count: int) -> Spread:
        """Bound / step."""
        return Spread.of(pair.bound / pair.step for pair in self.of(way, count))

    def saved(self, way: str, count: int) -> Spread:
        """Share of a way's step that ours saves, round by round."""
        pairs = zip(self.of(OURS, count), self.of(way, count), strict=True)
        return Spread.of(1 - mine.step / theirs.step for mine, theirs in pairs)

    def misses(self) -> list[str]:
        """Targets that are missed; medians count."""
        found = []
        for count in self.counts:
            if (share := self.shares(OURS, count).median) < BOUND_SHARE:
                found.append(f"m = {count}: {share:.1%} of the bound < {BOUND_SHARE:.0%}")
            if (saved := self.saved(STOCK, count).median) < SAVED:
                found.append(
                    f"m = {count}: {saved:.1%} faster than the stock backward < {SAVED:.0%}"
                )
        return found

    def doubts(self) -> list[str]:
        """What makes figures doubtful."""
        found = []
        if (busy := min(_busy(pair) for pair in self.pairs)) < BUSY:
            found.append(
                f"A stage had only {busy:.0%} of its core in a step: something else was running, "
                "so measure again."
            )
        for count in self.counts:
            last = [pair.last for pair in self.pairs if pair.first.micro_batches == count]
            for what, values in (
                ("loss", [one.loss for one in last]),
                ("gradient", [one.norm for one in last]),
            ):
                told = [value for value in values if value]  # DeepSpeed does not tell the norm
                if max(told) - min(told) > TOLERANCE * max(told):
                    found.append(
                        f"m = {count}: the ways disagree on the {what}, from {min(told)} to "
                        f"{max(told)}."
                    )
        return found


def _busy(pair: Pair) -> float:
    return min(pair.first.busy, pair.last.busy)


def step_table(results: Results) -> list[str]:
    """A row for each way and number of micro-batches."""
    heads = [
        "m",
        "way",
        "step, s",
        "1F1B, s",
        "bound, s",
        "bound / step",
        "bound / 1F1B",
        "own passes",
    ]
    heads += ["F, ms", "B, ms", "around, ms", "core busy"]
    rows = [f"| {' | '.join(heads)} |", f"| ---: | --- |{' ---: |' * (len(heads) - 2)}"]
    for count in results.counts:
        for way in WAYS:
            if pairs := results.of(way, count):
                rows.append(f"| {count} | {way} | {' | '.join(_cells(pairs))} |")
    return rows


def _cells(pairs: list[Pair]) -> list[str]:
    def each(ms: Callable[[Sample], float]) -> str:
        return " / ".join(f"{1e3 * median(map(ms, side)):.0f}" for side in _sides(pairs))

    return [
        Spread.of(pair.step for pair in pairs).text(2),
        f"{median(pair.pipe for pair in pairs):.2f}",
        f"{median(pair.bound for pair in pairs):.2f}",
        Spread.of(pair.bound / pair.step for pair in pairs).text(3),
        f"{median(pair.bound / pair.pipe for pair in pairs):.3f}",
        f"{median(pair.replayed / pair.pipe for pair in pairs):.3f}",
        each(lambda stage: stage.forward),
        each(lambda stage: stage.backward),
        each(lambda stage: stage.around / stage.micro_batches),
        f"{min(_busy(pair) for pair in pairs):.0%}",
    ]


def _sides(pairs: list[Pair]) -> tuple[list[Sample], list[Sample]]:
    return [pair.first for pair in pairs], [pair.last for pair in pairs]


def saved_table(results: Results) -> list[str]:
    """How much of the others' time ours saves."""
    rows = [
        "| m | beside | step: time saved, round by round | times as fast |",
        "| ---: | --- | ---: | ---: |",
    ]
    for count in results.counts:
        for way in WAYS[1:]:
            if results.of(way, count):
                saved = results.saved(way, count)
                rows.append(f"| {count} | {way} | {saved.text(3)} | {1 / (1 - saved.median):.2f} |")
    return rows


def tables(results: Results) -> list[str]:
    """Everything that was found."""
    missed = results.misses()
    verdict = "missed:" if missed else "met."
    crossing = len(results.seen.crossing)
    return [
        f"Targets (bound / step at least {BOUND_SHARE:.0%}, and a step at least {SAVED:.0%} "
        f"shorter than with the stock backward): {verdict}",
        *(f"- {line}" for line in missed),
        "",
        *step_table(results),
        "",
        *saved_table(results),
        "",
        f"The stages; {crossing} tensor{'s cross' if crossing != 1 else ' crosses'} the cut:",
        "",
        *(f"    {line}" for line in results.seen.stages),
        "",
        *results.doubts(),
    ]
