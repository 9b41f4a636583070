"""From timed intervals to what a checkpoint costs a run: arithmetic and text alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.report import Spread

NONE, WAITING, BESIDE = "none", "synchronous", "asynchronous"
WAYS = (NONE, WAITING, BESIDE)
EVERY = 100
"""Steps from one checkpoint to the next that shares are given for."""
TARGET = 0.01
"""Largest stall, as a share of the time from one checkpoint to the next."""


@dataclass(frozen=True)
class Interval:
    """A checkpoint and some steps, on one rank."""

    way: str
    """Of `WAYS`."""
    held: float
    """Seconds in which the main thread was kept from training by the save."""
    worked: float
    """Seconds of a core that the writing took, in whichever thread."""
    seconds: float
    """Of all of it, from one barrier to another; what is still being written then is not
    counted."""
    left: float
    """Seconds from the last step to the end of the writing."""

    @property
    def cost(self) -> float:
        """Seconds that the save and a thread that writes take of one core."""
        return self.held + self.worked


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
    spare: bool = False
    """Whether the machine has a core beside those of the ranks."""

    @property
    def step(self) -> float:
        """Seconds a step, of intervals without a checkpoint."""
        return statistics.median(self._worst(NONE, "seconds")) / self.steps

    def held(self, way: str) -> list[float]:
        """Round by round, how long the rank that was kept longest was kept."""
        return self._worst(way, "held")

    def worked(self, way: str) -> list[float]:
        """Round by round, the seconds of a core that the writing took the rank that needed most."""
        return self._worst(way, "worked")

    def stall(self, way: str) -> list[float]:
        """Round by round, what the steps are kept waiting at most, on the rank that waits longest:
        by the save, and where a thread writes on the core that the steps are taken on, by what it
        needs of it.
        """
        if way == WAITING or self.spare:
            return self.held(way)
        return self._worst(way, "cost")

    def longer(self, way: str) -> list[float]:
        """Round by round, by how much an interval was longer than the one without a checkpoint."""
        pairs = zip(self._worst(way, "seconds"), self._worst(NONE, "seconds"), strict=True)
        return [seconds - plain for seconds, plain in pairs]

    def unfinished(self) -> int:
        """Intervals that ended before their checkpoint was written, so that the next one began
        late."""
        return sum(left > self.step for left in self._worst(BESIDE, "left"))

    def share(self, seconds: Sequence[float]) -> float:
        """The median of what a checkpoint costs, of the time from one checkpoint to the next."""
        return statistics.median(seconds) / (EVERY * self.step)

    def noise(self) -> float:
        """Seconds between the shortest and the longest interval without a checkpoint."""
        plain = self._worst(NONE, "seconds")
        return max(plain) - min(plain)

    def _worst(self, way: str, what: str) -> list[float]:
        """Round by round, the largest over the ranks."""
        rounds = zip(*(each.intervals for each in self.seen), strict=True)
        return [
            max(getattr(one, what) for row in ranks for one in row if one.way == way)
            for ranks in rounds
        ]


def table(cases: Sequence[Case]) -> list[str]:
    """One row a model and way."""
    rows = [
        "| model | ranks | MiB a rank | step, s | checkpoint | held, ms | writing, ms of a core | "
        f"longer, ms | stall, of {EVERY} steps | longer, of {EVERY} steps |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in cases:
        size = max(each.size for each in case.seen)
        about = f"{case.model} | {case.ranks} | {size:.0f} | {case.step:.3f}"
        for way in (WAITING, BESIDE):
            times = " | ".join(
                _milliseconds(of(way)) for of in (case.held, case.worked, case.longer)
            )
            shares = " | ".join(f"{case.share(of(way)):.2%}" for of in (case.stall, case.longer))
            rows.append(f"| {about} | {way} | {times} | {shares} |")
    return rows


def _milliseconds(values: Sequence[float]) -> str:
    return Spread.of(1000 * value for value in values).text(0)


def doubts(cases: Sequence[Case]) -> list[str]:
    """What figures have to be read with."""
    lines = []
    for case in cases:
        name = f"{case.model}, {case.ranks} rank{'s' * (case.ranks > 1)}"
        lines.append(
            f"- {name}: intervals of {case.steps} steps without a checkpoint lie "
            f"{1000 * case.noise():.0f} ms apart"
        )
        if late := case.unfinished():
            lines.append(
                f"- {name}: {late} intervals were too short for their checkpoint to be written in "
                "them"
            )
    return lines


def misses(cases: Sequence[Case]) -> list[str]:
    """Where an asynchronous checkpoint stalls a run for longer than it may."""
    shares = [(case, case.share(case.stall(BESIDE))) for case in cases]
    return [
        f"{case.model}, {case.ranks} ranks: {share:.2%} of {EVERY} steps"
        for case, share in shares
        if share > TARGET
    ]
