"""The fastest layout of every family, precision and way of recomputing that fits into memory.

A cell is one such combination. Its layouts are taken in the order of a lower bound of their time,
so that most are never simulated, and none that could win is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from yolods.plan.layout import Layout
from yolods.plan.memory.terms import RankMemory
from yolods.plan.time.step import Clock, StepSeconds
from yolods.planner.choices import Choice, Family, Layouts, families, family_of, micro_batches

MemoryOf = Callable[[Layout], tuple[RankMemory, ...]]
"""The memory of one rank of every stage of a layout."""
TIE = 0.02
"""Layouts whose times differ by up to this share are equally fast: the times are estimates."""


@dataclass(frozen=True)
class Limits:
    """What a rank may use."""

    device: float
    """Bytes of device memory."""
    host: float = float("inf")
    """Bytes of host memory."""

    def over(self, memory: Iterable[RankMemory]) -> float:
        """Bytes by which the fullest rank is above the limits; 0: all fit."""
        return max(max(each.device - self.device, each.host - self.host, 0.0) for each in memory)


@dataclass(frozen=True)
class Option:
    """A layout with its memory and, if it fits, its time."""

    layout: Layout
    memory: tuple[RankMemory, ...]
    """Of one rank of every stage."""
    step: StepSeconds | None
    """None: it does not fit."""
    over: float = 0.0
    """Bytes by which its fullest rank is above the limits."""

    @property
    def family(self) -> Family:
        """Its family."""
        return family_of(self.layout)

    @property
    def fullest(self) -> RankMemory:
        """The memory of the stage that takes most."""
        return max(self.memory, key=lambda each: each.device)

    @property
    def seconds(self) -> float:
        """Seconds of a step; infinite if it does not fit."""
        return float("inf") if self.step is None else self.step.total


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    choice: Choice
    limits: Limits
    cells: tuple[Option, ...]
    """The fastest layout of each cell; of one that none fits, the nearest to fitting."""
    undivided: tuple[Family, ...]
    """Families without a layout: the images do not divide, or a stage has nothing to train."""
    examined: int
    """Number of layouts whose time is bounded or computed."""

    @cached_property
    def ranked(self) -> tuple[Option, ...]:
        """The fastest layout of each family that fits, the best first.

        Of equally fast ones the simpler comes first: fewer stages, no offload, a lower ZeRO stage.
        """
        fitting = _best_by(self.fitting, lambda each: each.family)
        first = min((each.seconds for each in fitting), default=0.0)
        return tuple(sorted(fitting, key=lambda each: _rank(each, first)))

    @property
    def fitting(self) -> tuple[Option, ...]:
        """The cells that fit."""
        return tuple(each for each in self.cells if each.step is not None)

    @property
    def best(self) -> Option | None:
        """The layout to take; None: nothing fits."""
        return self.ranked[0] if self.ranked else None

    @property
    def nearest(self) -> Option | None:
        """The layout that misses the limits by least; None: there is no layout at all."""
        return min(self.cells, key=lambda each: (each.over, _simplicity(each)), default=None)


def search_layouts(choice: Choice, clock: Clock, memory_of: MemoryOf, limits: Limits) -> Found:
    """Search all layouts of a choice.

    Args:
        choice: ranks, images per step and precisions.
        clock: the times.
        memory_of: the memory model.
        limits: what a rank may use.
    """
    layouts = Layouts(choice, clock, limits.device)
    walk, cells, empty = _Walk(layouts, clock, memory_of, limits), [], []
    for family in families(choice, layouts.nodes):
        found = [
            option
            for precision in choice.precisions
            for recompute in (False, True)
            if (option := walk.best(layouts.of(family, precision, recompute=recompute)))
        ]
        cells += found
        if not found:
            empty.append(family)
    return Found(choice, limits, tuple(cells), tuple(empty), walk.examined)


class _Walk:
    """Takes the layouts of a cell in the order of their bounds."""

    def __init__(self, layouts: Layouts, clock: Clock, memory_of: MemoryOf, limits: Limits) -> None:
        self._layouts, self._clock = layouts, clock
        self._memory_of, self._limits = memory_of, limits
        self.examined = 0

    def best(self, cell: Iterator[Layout]) -> Option | None:
        """The fastest that fits, or the nearest to fitting; None: the cell is empty."""
        bounds = sorted(
            ((self._clock.least(layout), place, layout) for place, layout in enumerate(cell))
        )
        self.examined += len(bounds)
        best: Option | None = None
        for bound, _, layout in bounds:
            if best is not None and bound >= best.seconds:
                break
            option = self._fitted(layout)
            if best is None or (option.seconds, option.over) < (best.seconds, best.over):
                best = option
        return best

    def _fitted(self, layout: Layout) -> Option:
        """The layout, or its cuts by memory if only these fit."""
        option = self._option(layout)
        if not option.over:
            return option
        leaner = self._layouts.leaner(layout)
        if leaner is None:
            return option
        self.examined += 1
        other = self._option(leaner)
        return other if other.over < option.over else option

    def _option(self, layout: Layout) -> Option:
        memory = self._memory_of(layout)
        over = self._limits.over(memory)
        return Option(layout, memory, None if over else self._clock.step(layout), over)


def best_by_trait(found: Found, trait: Callable[[Layout], object]) -> dict[object, Option]:
    """The best cell of each value of a trait of layouts."""
    return {trait(each.layout): each for each in _best_by(found.cells, lambda o: trait(o.layout))}


def divides(choice: Choice, family: Family) -> bool:
    """Whether the images divide among a family's replicas."""
    return bool(micro_batches(choice, choice.ranks // family.stages))


def _best_by(options: Iterable[Option], key: Callable[[Option], object]) -> list[Option]:
    best: dict[object, Option] = {}
    for option in options:
        before = best.get(key(option))
        if before is None or (option.seconds, option.over) < (before.seconds, before.over):
            best[key(option)] = option
    return list(best.values())


def _rank(option: Option, fastest: float) -> tuple[object, ...]:
    tied = option.seconds <= fastest * (1 + TIE)
    return (not tied, *((_simplicity(option),) if tied else ()), option.seconds)


def _simplicity(option: Option) -> tuple[int, ...]:
    family, layout = option.family, option.layout
    away = family.offload_optimizer + family.offload_param
    return (family.stages, away, family.zero_stage, int(layout.recompute != 0))
