"""The layouts that there are to choose from, at a number of ranks and images per step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product

from yolods.config.deepspeed.pipeline import SCHEDULES
from yolods.plan.cost import Cost
from yolods.plan.layout import Layout
from yolods.plan.partition import nearest_within
from yolods.plan.stage_costs import Terms
from yolods.plan.stage_plan import state_bytes
from yolods.plan.time.step import Clock

CUT_IMAGES = 4
"""Images of the pass whose times are balanced. The time of a pass grows with its images in all
nodes alike, except for the launches of kernels, so one number serves all."""
AVERAGE = 4
"""Bytes per parameter of the moving average, which `state_bytes` leaves out."""
HEADROOM = 0.8
"""Share of the memory that cuts are chosen for: their search does not see the loss, the buckets and
the allocator, which the memory model counts afterwards."""


@dataclass(frozen=True, order=True)
class Family:
    """What distinguishes layouts at first sight; a plan shows the best of each."""

    stages: int
    """Pipeline stages; 1: no pipeline."""
    zero_stage: int
    """0 to 3."""
    offload_optimizer: bool = False
    """Whether masters and optimizer states are in host memory."""
    offload_param: bool = False
    """Whether parameters are in host memory."""

    @property
    def label(self) -> str:
        """For tables."""
        away = " offload" * self.offload_optimizer + "+param" * self.offload_param
        pipe = f"{self.stages} stages, " if self.stages > 1 else ""
        return f"{pipe}ZeRO {self.zero_stage}{away}"


def family_of(layout: Layout) -> Family:
    """The family of a layout."""
    return Family(layout.stages, layout.zero_stage, layout.offload_optimizer, layout.offload_param)


@dataclass(frozen=True)
class Choice:
    """What the layouts of a plan have in common."""

    imgsz: int
    """Side of the images in pixels."""
    ranks: int
    """All ranks."""
    images: int
    """Images per step."""
    precisions: tuple[str, ...]
    """Data types to choose from."""
    forward_images: int | None = None
    """Images per forward pass over all replicas, if they are given; else they are chosen."""
    sync_bn: bool = False
    """Whether BatchNorm's statistics are shared among replicas."""
    single_value: bool = False
    """Whether one image per micro-batch would leave BatchNorm one value per channel."""
    stages: int | None = None
    """Only this number of pipeline stages; None: any."""
    zero_stage: int | None = None
    """Only this ZeRO stage; None: any."""
    recompute: bool | None = None
    """Only with or only without recomputing; None: both."""


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    small = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return tuple(sorted({*small, *(number // each for each in small)}))


def families(choice: Choice, nodes: int) -> tuple[Family, ...]:
    """All families at this number of ranks, also those for which the images do not divide."""
    found = []
    for stages in (each for each in divisors(choice.ranks) if each <= nodes):
        for zero in (0, 1, 2, 3) if stages == 1 else (0, 1):
            found.append(Family(stages, zero))
            if stages == 1 and zero:
                found.append(Family(stages, zero, offload_optimizer=True))
        if stages == 1:
            found.append(Family(stages, 3, offload_optimizer=True, offload_param=True))
    return tuple(
        each
        for each in found
        if choice.stages in (None, each.stages) and choice.zero_stage in (None, each.zero_stage)
    )


def micro_batches(choice: Choice, replicas: int) -> tuple[int, ...]:
    """The possible images per replica and forward pass, largest first; (): the images do not
    divide among the replicas."""
    if choice.images % replicas:
        return ()
    share = choice.images // replicas
    if choice.forward_images is not None:
        micro = choice.forward_images // replicas
        exact = micro * replicas == choice.forward_images and micro and share % micro == 0
        return (micro,) if exact else ()
    least = 2 if choice.single_value else 1
    return tuple(each for each in reversed(divisors(share)) if each >= least)


def obstacle(choice: Choice, family: Family) -> str:
    """Why a family without a layout has none."""
    replicas = choice.ranks // family.stages
    if choice.images % replicas:
        return f"{choice.images} images do not divide among {replicas} replicas"
    if not micro_batches(choice, replicas):
        if choice.forward_images is not None:
            return (
                f"{choice.forward_images} images per pass do not divide among {replicas} replicas"
            )
        return (
            f"{choice.images} images / {replicas} replicas = 1 image per micro-batch, whose last "
            f"feature map is one pixel: too little for BatchNorm at {choice.imgsz} pixels; use "
            f"--images-per-step {2 * replicas} or more"
        )
    if family.zero_stage == 0 and set(choice.precisions) == {"fp16"}:
        return "fp16 needs ZeRO 1 or above"
    return "a stage would have no weights to train"


class Layouts:
    """The layouts of each family, with their cuts."""

    def __init__(self, choice: Choice, clock: Clock, limit: float) -> None:
        """
        Args:
            choice: what they have in common.
            clock: the times by which cuts are chosen.
            limit: bytes of device memory that a rank may use.
        """
        self.choice, self._clock, self._limit = choice, clock, limit
        # Cuts that ignore memory depend on neither ZeRO nor accumulation.
        self._fastest = lru_cache(maxsize=None)(self._cut_by_time)

    @property
    def nodes(self) -> int:
        """Nodes of the model."""
        return len(self._costs(self.choice.precisions[0]).nodes)

    def of(self, family: Family) -> Iterator[Layout]:
        """The layouts of a family: every data type, batch, schedule, with and without recomputing.

        Their cuts balance time and ignore memory; `leaner` cuts by memory.
        """
        ways = (False, True) if self.choice.recompute is None else (self.choice.recompute,)
        for precision, recompute in product(self.choice.precisions, ways):
            # DeepSpeed's fp16 without ZeRO is refused (config/deepspeed/config.py).
            if precision == "fp16" and family.zero_stage == 0:
                continue
            cuts: tuple[int, ...] = ()
            if family.stages > 1:
                cuts = self._fastest(family.stages, precision, recompute)
                if not self._all_train(cuts):
                    continue
            segments = self._segments(family) if recompute else 0
            for layout in self._batched(family, precision):
                layout = replace(layout, cuts=cuts, recompute=segments)
                for schedule in self._schedules(layout):
                    yield replace(layout, schedule=schedule)

    def _batched(self, family: Family, precision: str) -> Iterator[Layout]:
        """A layout for each possible micro-batch, without cuts."""
        replicas = self.choice.ranks // family.stages
        for micro in micro_batches(self.choice, replicas):
            yield Layout(
                imgsz=self.choice.imgsz,
                micro_batch=micro,
                accumulation=self.choice.images // replicas // micro,
                replicas=replicas,
                precision=precision,
                zero_stage=family.zero_stage,
                offload_optimizer=family.offload_optimizer,
                offload_param=family.offload_param,
                sync_bn=self.choice.sync_bn and replicas > 1,
            )

    def _schedules(self, layout: Layout) -> tuple[str, ...]:
        """The schedules: zero-bubble keeps what recomputing is to free, so they exclude each
        other."""
        return SCHEDULES if layout.stages > 1 and not layout.recompute else SCHEDULES[:1]

    def leaner(self, layout: Layout) -> Layout | None:
        """The same layout cut by memory; None: those are its cuts already, a stage would have no
        weights, or there is no pipeline."""
        if layout.stages == 1:
            return None
        costs, bytes_each = self._costs(layout.precision), _states(layout)
        terms = Terms(
            micro_batch=layout.micro_batch,
            micro_batches=layout.accumulation,
            seconds=self._seconds(layout.precision, layout.micro_batch, layout.recompute > 0),
            memory_limit=HEADROOM * self._limit,
            state_bytes=bytes_each,
            recompute=layout.recompute,
        )
        cuts = nearest_within(costs, layout.stages, terms).cuts
        if cuts == layout.cuts or not self._all_train(cuts):
            return None
        return replace(layout, cuts=cuts)

    def _costs(self, precision: str) -> Cost:
        return self._clock.costs[precision]

    def _seconds(self, precision: str, images: int, recompute: bool) -> tuple[float, ...]:
        return self._clock.times[precision].both(images, recompute=recompute)

    def _cut_by_time(self, stages: int, precision: str, recompute: bool) -> tuple[int, ...]:
        seconds = self._seconds(precision, CUT_IMAGES, recompute)
        terms = Terms(micro_batch=CUT_IMAGES, seconds=seconds)
        return nearest_within(self._costs(precision), stages, terms).cuts

    def _segments(self, family: Family) -> int:
        """What is recomputed: about the square root of the nodes of a stage at a time."""
        if family.stages == 1:
            return -1
        return max(round(math.sqrt(self.nodes / family.stages)), 1)

    def _all_train(self, cuts: tuple[int, ...]) -> bool:
        """Whether every stage has a weight, without which an optimizer cannot be built."""
        nodes = self._costs(self.choice.precisions[0]).nodes
        bounds = (0, *cuts, len(nodes))
        return all(any(node.parameters for node in nodes[a:b]) for a, b in pairwise(bounds))


def _states(layout: Layout) -> float:
    return state_bytes(layout.precision, layout.zero_stage, layout.replicas) + AVERAGE
