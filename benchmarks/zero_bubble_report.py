"""The arithmetic and the tables of `zero_bubble.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.report import Spread
from yolods.plan.one_f_one_b import Instruction, instructions, simulate
from yolods.plan.zero_bubble import COST, passes, simulate_split

SCHEDULES = ("1f1b", "zb")
NAMES = {"1f1b": "1F1B", "zb": "zero-bubble"}
SHARE = 0.6
"""Target: largest idle share beside 1F1B's, with 4 stages and 8 micro-batches."""
TIMES = ((1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (1.0, 0.8, 1.2), (1.0, 1.5, 1.0))
"""F, B and W."""
SHAPES = ((2, 4), (2, 8), (4, 4), (4, 8), (4, 16), (8, 16), (8, 32))
"""Stages and micro-batches."""


@dataclass(frozen=True)
class Step:
    """One step on one stage."""

    schedule: str
    """Of `SCHEDULES`."""
    micro_batches: int
    """Of the step."""
    round: int
    """From 0."""
    step: float
    """Wall seconds of the whole optimizer step."""
    cpu: float
    """CPU seconds of the process in it."""
    forwards: Sequence[float]
    """CPU seconds of each forward pass, by micro-batch."""
    backwards: Sequence[float]
    """Likewise, of each backward pass or, of a divided one, its inputs' part."""
    weights: Sequence[float]
    """Likewise, of the weights' parts of the divided ones, which are the last ones."""
    loss: float
    """Sum of the loss items."""
    norm: float
    """Gradient norm."""

    @property
    def wholes(self) -> Sequence[float]:
        """CPU seconds of the undivided backward passes."""
        return self.backwards[: self.micro_batches - len(self.weights)]

    @property
    def inputs(self) -> Sequence[float]:
        """CPU seconds of the inputs' parts of divided ones."""
        return self.backwards[self.micro_batches - len(self.weights) :]


def played(stages: Sequence[Step]) -> float:
    """Seconds from the first pass to the last, with a core for each stage and no transfers."""
    count = stages[0].micro_batches
    ordered = passes if stages[0].schedule == "zb" else instructions
    left = [list(ordered(len(stages), place, count)) for place in range(len(stages))]
    free = [0.0] * len(stages)
    ended: dict[tuple[Instruction, int], float] = {}
    while any(left):
        for place, stage in enumerate(stages):
            while left[place]:
                kind, number = done = left[place][0]
                source = {"F": place - 1, "B": place + 1}.get(kind, place)
                outside = kind == "W" or not 0 <= source < len(stages)
                if not outside and (done, source) not in ended:
                    break
                seconds = {"F": stage.forwards, "B": stage.backwards, "W": stage.weights}[kind]
                start = max(free[place], 0.0 if outside else ended[done, source])
                # The divided passes are the last ones.
                free[place] = ended[done, place] = start + seconds[number - count]
                left[place].pop(0)
    return max(free)


Pairs = list[tuple[Step, ...]]


def pairs_of(taken: Sequence[Sequence[Step]], schedule: str, count: int) -> Pairs:
    """Both stages of a schedule's steps of `count` micro-batches, round by round."""
    return [
        pair
        for pair in zip(*taken, strict=True)
        if (pair[0].schedule, pair[0].micro_batches) == (schedule, count)
    ]


def walls(pairs: Pairs) -> list[float]:
    """Seconds of each step; the ranks begin it together."""
    return [max(stage.step for stage in pair) for pair in pairs]


def ratios(taken: Sequence[Sequence[Step]], count: int, of: Any) -> Spread:
    """Zero-bubble's value over 1F1B's, round by round."""
    plain, split = (of(pairs_of(taken, schedule, count)) for schedule in SCHEDULES)
    return Spread.of(mine / other for mine, other in zip(split, plain, strict=True))


def _played(pairs: Pairs) -> list[float]:
    return [played(pair) for pair in pairs]


def _cpu(pairs: Pairs) -> list[float]:
    return [sum(stage.cpu for stage in pair) for pair in pairs]


def counts_of(taken: Sequence[Sequence[Step]]) -> list[int]:
    """All numbers of micro-batches."""
    return sorted({step.micro_batches for step in taken[0]})


def step_tables(taken: Sequence[Sequence[Step]]) -> list[str]:
    """Steps by schedule, and their ratios."""
    rows = ["| m | schedule | step, s | played, s | CPU, s | F, ms | whole, ms | B, ms | W, ms |"]
    rows.append("| ---: | --- |" + " ---: |" * 7)
    for count in counts_of(taken):
        for schedule in SCHEDULES:
            pairs = pairs_of(taken, schedule, count)
            cells = [Spread.of(of(pairs)).text(2) for of in (walls, _played, _cpu)]
            cells += [_passes(pairs, kind) for kind in ("forwards", "wholes", "inputs", "weights")]
            rows.append(f"| {count} | {NAMES[schedule]} | {' | '.join(cells)} |")
    rows += ["", "| m | zb / 1F1B: step | played | CPU |", "| ---: | ---: | ---: | ---: |"]
    for count in counts_of(taken):
        cells = [ratios(taken, count, of).text(3) for of in (walls, _played, _cpu)]
        rows.append(f"| {count} | {' | '.join(cells)} |")
    return rows


def _passes(pairs: Pairs, kind: str) -> str:
    """CPU milliseconds of a pass, by stage."""
    stages = [
        [each for step in stage for each in getattr(step, kind)]
        for stage in zip(*pairs, strict=True)
    ]
    return " / ".join(f"{1e3 * median(each):.0f}" if each else "-" for each in stages)


def misses(taken: Sequence[Sequence[Step]]) -> list[str]:
    """Targets of the measured steps that are missed; medians count."""
    found = []
    for count in counts_of(taken):
        ratio = ratios(taken, count, walls).median
        if ratio > 1 or (count == 4 and ratio == 1):
            found.append(f"m = {count}: a step takes {ratio:.3f} of 1F1B's")
        losses = {step.loss for step in taken[-1] if step.micro_batches == count}
        if max(losses) - min(losses) > 1e-6 * max(losses):
            found.append(f"m = {count}: losses from {min(losses)} to {max(losses)}")
    return found


def idle_table() -> tuple[list[str], list[str]]:
    """Idle shares of both schedules, and what misses the target."""
    rows = ["| stages | m | F, B, W | 1F1B | zero-bubble | zb / 1F1B | step |"]
    rows.append("| ---: | ---: | --- |" + " ---: |" * 4)
    missed = []
    for stages, count in SHAPES:
        for forward, backward, weights in TIMES:
            whole = simulate([forward] * stages, [backward + weights] * stages, count)
            times = [[each] * stages for each in (forward, backward, weights)]
            plain, split = whole.idle_share, simulate_split(*times, count).idle_share
            step = simulate_split(*times, count, cost=COST).makespan / whole.makespan
            parts = f"{forward:g}, {backward:g}, {weights:g}"
            cells = f"{plain:.1%} | {split:.1%} | {split / plain:.2f} | {step:.3f}"
            rows.append(f"| {stages} | {count} | {parts} | {cells} |")
            if (stages, count) == (4, 8) and split > SHARE * plain:
                missed.append(f"F, B, W {parts}: {split / plain:.2f} of 1F1B's > {SHARE}")
    return rows, missed


def gradient_table(
    found: Mapping[str, Sequence[tuple[str, Sequence[Mapping[str, Any]]]]], limit: float
) -> tuple[list[str], list[str]]:
    """A row per group of cuts, and the cuts beyond the limit.

    Args:
        found: for each group its cuts, each with the ranks' results of `schedules_apart`.
    """
    rows = ["| what | cuts | gradient | of | loss | statistic | equal |"]
    rows.append("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    missed = []
    for name, cases in found.items():
        largest = {
            what: max((*rank[what], label) for label, ranks in cases for rank in ranks)
            for what in ("gradient", "loss", "statistic")
        }
        equal = sum(all(rank["equal"] for rank in ranks) for _, ranks in cases)
        value, where, label = largest["gradient"]
        place = f"{where}, {label}" if value else "-"
        rows.append(
            f"| {name} | {len(cases)} | {value:.1e} | {place} | {largest['loss'][0]:.1e} | "
            f"{largest['statistic'][0]:.1e} | {equal} |"
        )
        missed += [
            f"{what} of {part} at {label} is {value:.1e} apart"
            for label, ranks in cases
            for rank in ranks
            for what in ("gradient", "loss", "statistic")
            for value, part in [rank[what]]
            if value > limit
        ]
    return rows, missed
