"""The fastest layout of every family that fits into memory.

The layouts of a family are taken in the order of a lower bound of their time, so that most are
never simulated nor traced, and none that could be the fastest is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from yolods.plan.layout import Layout
from yolods.plan.memory.terms import RankMemory
from yolods.plan.time.step import Clock, StepSeconds
from yolods.planner.choices import Choice, Family, Layouts, families, family_of

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
    shared: bool = False
    """Whether both are the same memory, as on a CPU."""

    def taken(self, memory: RankMemory) -> int:
        """Bytes that count against `device`."""
        return memory.device + (memory.host if self.shared else 0)

    def over(self, memory: Iterable[RankMemory]) -> float:
        """Bytes by which the fullest rank is above the limits; 0: all fit."""
        return max(
            max(self.taken(each) - self.device, each.host - self.host, 0.0) for each in memory
        )


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

    def beats(self, other: Option | None) -> bool:
        """Whether it is faster, or nearer to fitting if neither fits."""
        return other is None or (self.seconds, self.over) < (other.seconds, other.over)


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    choice: Choice
    limits: Limits
    options: tuple[Option, ...]
    """The fastest layout of each family; of one that none fits, the nearest to fitting."""
    undivided: tuple[Family, ...]
    """Families without a layout: the images do not divide, or a stage has nothing to train."""
    bounds: dict[tuple[str, object], float]
    """(setting, value) -> least possible seconds of layouts with it, fitting or not."""
    examined: int
    """Number of layouts whose time is bounded or computed."""

    @cached_property
    def ranked(self) -> tuple[Option, ...]:
        """The families that fit, the best first.

        Of equally fast ones the simpler comes first: fewer stages, no offload, a lower ZeRO stage.
        """
        fitting = [each for each in self.options if each.step is not None]
        fastest = min((each.seconds for each in fitting), default=0.0)
        return tuple(sorted(fitting, key=lambda each: _rank(each, fastest)))

    @property
    def best(self) -> Option | None:
        """The layout to take; None: nothing fits."""
        return self.ranked[0] if self.ranked else None

    @property
    def nearest(self) -> Option | None:
        """The layout that misses the limits by least; None: there is no layout at all."""
        return min(self.options, key=lambda each: (each.over, _simplicity(each)), default=None)


def search_layouts(
    choice: Choice,
    clock: Clock,
    memory_of: MemoryOf,
    limits: Limits,
    least_of: MemoryOf | None = None,
) -> Found:
    """Search all layouts of a choice.

    Args:
        choice: ranks, images per step and precisions.
        clock: the times.
        memory_of: the memory model.
        limits: what a rank may use.
        least_of: what a rank needs at least, quicker to compute: dismisses layouts.
    """
    layouts = Layouts(choice, clock, limits.device)
    walk, options, empty = _Walk(layouts, clock, memory_of, limits, least_of), [], []
    for family in families(choice, layouts.nodes):
        option = walk.best(family)
        if option is None:
            empty.append(family)
        else:
            options.append(option)
    found = Found(choice, limits, tuple(options), tuple(empty), walk.bounds, walk.examined)
    # The arithmetic of the nearest is shown, and it may be known by its least memory only.
    while found.best is None and found.nearest is not None:
        near = found.nearest
        exact = walk.exactly(near.layout)
        if exact.over == near.over:
            break
        options[options.index(near)] = exact
        found = replace(found, options=tuple(options))
    return found


class _Walk:
    """Takes the layouts of a family in the order of their bounds."""

    def __init__(
        self,
        layouts: Layouts,
        clock: Clock,
        memory_of: MemoryOf,
        limits: Limits,
        least_of: MemoryOf | None,
    ) -> None:
        self._layouts, self._clock = layouts, clock
        self._memory_of, self._least_of, self._limits = memory_of, least_of, limits
        self.examined = 0
        self.bounds: dict[tuple[str, object], float] = {}

    def best(self, family: Family) -> Option | None:
        """The fastest that fits, or the nearest to fitting; None: the family is empty."""
        # The place decides between equal bounds, because layouts have no order.
        bounds = sorted(
            (self._bound(layout), place, layout)
            for place, layout in enumerate(self._layouts.of(family))
        )
        best: Option | None = None
        for bound, _, layout in bounds:
            if best is not None and bound >= best.seconds:
                break
            option = self._fitted(layout)
            best = option if option.beats(best) else best
        return best

    def _bound(self, layout: Layout) -> float:
        bound = self._clock.least(layout)
        self.examined += 1
        for trait in traits(layout).items():
            self.bounds[trait] = min(bound, self.bounds.get(trait, bound))
        return bound

    def _fitted(self, layout: Layout) -> Option:
        """The layout, or its cuts by memory if only these fit."""
        option = self._option(layout)
        leaner = self._layouts.leaner(layout) if option.over else None
        if leaner is None:
            return option
        self.examined += 1
        other = self._option(leaner)
        return other if other.beats(option) else option

    def _option(self, layout: Layout) -> Option:
        if self._least_of is not None:
            least = self._least_of(layout)
            if over := self._limits.over(least):
                return Option(layout, least, None, over)
        return self.exactly(layout)

    def exactly(self, layout: Layout) -> Option:
        """The layout with its whole memory."""
        memory = self._memory_of(layout)
        over = self._limits.over(memory)
        return Option(layout, memory, None if over else self._clock.step(layout), over)


def traits(layout: Layout) -> dict[str, object]:
    """Settings that a family leaves open, by name."""
    found: dict[str, object] = {
        "precision": layout.precision,
        "recompute": "on" if layout.recompute else "off",
    }
    return {**found, "schedule": layout.schedule} if layout.stages > 1 else found


def _rank(option: Option, fastest: float) -> tuple[object, ...]:
    tied = option.seconds <= fastest * (1 + TIE)
    return (not tied, *(_simplicity(option) if tied else ()), option.seconds)


def _simplicity(option: Option) -> tuple[int, ...]:
    family, layout = option.family, option.layout
    away = family.offload_optimizer + family.offload_param
    return (family.stages, away, family.zero_stage, int(layout.recompute != 0))
