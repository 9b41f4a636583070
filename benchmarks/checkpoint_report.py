"""From timed intervals to what a checkpoint costs a run: arithmetic and text alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.report import Spread

NONE, WAITING, BESIDE = "none", "synchronous", "asynchronous"
WAYS = (NONE, WAITING, BESIDE)
EVERY = (100, 1000)
"""Steps from one checkpoint to the next that shares are given for."""
TARGET = 0.01
"""Largest share of the time from one checkpoint to the next, at the smaller of `EVERY`."""


@dataclass(frozen=True)
class Interval:
    """A checkpoint and some steps, on one rank."""

    way: str
    """Of `WAYS`."""
    held: float
    """Seconds in which the main thread was kept from training by the save."""
    seconds: float
    """Of all of it, from one barrier to another; what is still being written then is not counted."""
    left: float
    """Seconds from the last step to the end of the writing."""


@dataclass(frozen=True)
class Seen:
    """What a rank has seen."""

    size: float
    """MiB of its file."""
    intervals: list[list[Interval]]
    """By round, of each way one."""

    def as_dict(self) -> dict[str, Any]:
        """For the way between processes."""
        return asdict(self)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Seen:
        """Back from there."""
        return cls(told["size"], [[Interval(**each) for each in row] for row in told["intervals"]])


@dataclass(frozen=True)
class Case:
    """What was measured, and what every rank has seen."""

    model: str
    ranks: int
    steps: int
    """Of an interval."""
    seen: Sequence[Seen]

    @property
    def step(self) -> float:
        """Seconds a step, of intervals without a checkpoint."""
        return statistics.median(self._worst(NONE, "seconds")) / self.steps

    def held(self, way: str) -> list[float]:
        """Round by round, how long the rank that was kept longest was kept."""
        return self._worst(way, "held")

    def longer(self, way: str) -> list[float]:
        """Round by round, by how much an interval was longer than the one without a checkpoint."""
        pairs = zip(self._worst(way, "seconds"), self._worst(NONE, "seconds"), strict=True)
        return [seconds - plain for seconds, plain in pairs]

    def unfinished(self) -> int:
        """Intervals that ended before their checkpoint was written, so that the next one began late."""
        return sum(left > self.step for left in self._worst(BESIDE, "left"))

    def share(self, way: str, every: int) -> float:
        """Of the time from one checkpoint to the next, what the checkpoint adds to it."""
        return statistics.median(self.longer(way)) / (every * self.step)

    def noise(self) -> float:
        """Seconds between the shortest and the longest interval without a checkpoint."""
        plain = self._worst(NONE, "seconds")
        return max(plain) - min(plain)

    def _worst(self, way: str, what: str) -> list[float]:
        """Round by round, the largest over the ranks."""
        rounds = zip(*(each.intervals for each in self.seen), strict=True)
        return [max(getattr(one, what) for row in ranks for one in row if one.way == way) for ranks in rounds]


def table(cases: Sequence[Case]) -> list[str]:
    """One row a model and way."""
    rows = [
        "| model | ranks | MiB a rank | step, s | checkpoint | held, ms | longer, ms | "
        + " | ".join(f"of {every} steps" for every in EVERY)
        + " |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |" + " ---: |" * len(EVERY),
    ]
    for case in cases:
        size = max(each.size for each in case.seen)
        for way in (WAITING, BESIDE):
            held, longer = (_milliseconds(values) for values in (case.held(way), case.longer(way)))
            shares = " | ".join(f"{case.share(way, every):.2%}" for every in EVERY)
            rows.append(
                f"| {case.model} | {case.ranks} | {size:.0f} | {case.step:.3f} | {way} | {held} | {longer} | {shares} |"
            )
    return rows


def _milliseconds(values: Sequence[float]) -> str:
    return Spread.of(1000 * value for value in values).text(0)


def doubts(cases: Sequence[Case]) -> list[str]:
    """What figures have to be read with."""
    lines = []
    for case in cases:
        name = f"{case.model}, {case.ranks} rank{'s' * (case.ranks > 1)}"
        lines.append(
            f"- {name}: intervals of {case.steps} steps without a checkpoint lie {1000 * case.noise():.0f} ms apart"
        )
        if late := case.unfinished():
            lines.append(f"- {name}: {late} intervals were too short for their checkpoint to be written in them")
    return lines


def misses(cases: Sequence[Case]) -> list[str]:
    """Where an asynchronous checkpoint costs more than it may."""
    return [
        f"{case.model}, {case.ranks} ranks: {case.share(BESIDE, EVERY[0]):.2%} of {EVERY[0]} steps"
        for case in cases
        if case.share(BESIDE, EVERY[0]) > TARGET
    ]
