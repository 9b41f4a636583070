"""Seconds of one optimizer step under a layout: compute, communication, idle and optimizer.

What overlaps is what the engine overlaps. Reductions begin within the backward pass, unless
"overlap_comm" is false, and under ZeRO-3 gathers overlap, too: at most a share `HIDDEN` of them
hides behind computation. Under ZeRO-1 and 2 the device waits for the gather of new weights. A
pipeline reduces once, after its last backward pass. Sends over a cut hide behind computation as far
as the schedule allows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

import numpy as np

from yolods.plan.cost import Cost
from yolods.plan.layout import Layout
from yolods.plan.one_f_one_b import simulate
from yolods.plan.step_profile import StepProfile
from yolods.plan.time.gpus import MEMORY_EFFICIENCY, GpuFigures
from yolods.plan.time.nodes import NodeTimes
from yolods.plan.time.routes import Network, Routes, routes
from yolods.plan.traffic.links import Link, copying_seconds, seconds
from yolods.plan.traffic.transfers import Transfer, transfers
from yolods.plan.zero_bubble import division, simulate_split

OPTIMIZER_TRAFFIC = 44
"""Bytes of memory per parameter that a step of the optimizer reads or writes.

In units of 4: gradient for the norm, for clipping (twice) and for the update, master and momentum
twice each, the moving average twice and the master for it, and the new weight: 11.
"""
HIDDEN = 0.5
"""Assumed largest share of overlapped collectives that hides behind computation: gathers start few
layers ahead, the first ones wait for nothing, and the last reductions have nothing to hide behind.
"""
WEIGHTS_SHARE = 0.5
"""Share of a backward pass that computes the weights' gradients: half of a convolution's FLOPs."""
_WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Seconds of one step on the rank that takes longest, by what it does."""

    compute: float = 0.0
    """Forward and backward passes of the busiest stage."""
    communication: float = 0.0
    """Collectives for which computation waits, and what a CPU copies for them and for messages of
    a pipeline instead of computing."""
    idle: float = 0.0
    """Waiting for other stages, and for what they send."""
    optimizer: float = 0.0
    """Norm, clipping, update and moving average."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True, eq=False)
class Clock:
    """What the time of a model's layouts is computed from."""

    costs: dict[str, Cost]
    """The model's costs by precision."""
    times: dict[str, NodeTimes]
    """The nodes' times by precision."""
    gpu: GpuFigures
    """The device."""
    network: Network
    """The links."""
    boxes: float = 0.0
    """Mean number of boxes per training sample, which a pipeline sends to its last stage."""
    backend: str = "nccl"
    """nccl or gloo."""
    profile: StepProfile | None = None
    """Measured steps of ranks on CPUs: the optimizer, and what a reduction copies. None: the former
    by its memory traffic, the latter takes no time."""

    def least(self, layout: Layout) -> float:
        """A lower bound of `step(layout).total`, without a simulation.

        A stage starts when the first micro-batch has passed the stages before it, computes all
        micro-batches, and its last gradient still has to pass back. Without a pipeline, the bound
        is the time itself.
        """
        if layout.stages == 1:
            return self.step(layout).total
        forward, backward = self._passes(layout)
        busy = _least_makespan(layout.schedule, forward, backward, layout.accumulation)
        reduced = min(self._reduction(layout, each)[0] for each in self._routes(layout))
        return busy + reduced + self._optimizer(layout)

    def step(self, layout: Layout) -> StepSeconds:
        """The seconds of a step, in the order of ranks whose links take less time."""

        def sent(links: Routes) -> float:
            sends = sum(self._sends(layout, links))
            return self._reduction(layout, links)[0] + 2 * layout.accumulation * sends

        return self._step(layout, min(self._routes(layout), key=sent))

    def _routes(self, layout: Layout) -> tuple[Routes, ...]:
        return routes(self.network, layout.stages, layout.replicas)

    def _passes(self, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        precision = layout.autocast or layout.precision
        bounds = (0, *layout.cuts, len(self.costs[precision].nodes))
        return self.times[precision].stages(
            bounds, layout.micro_batch, recompute=layout.recompute != 0
        )

    def _step(self, layout: Layout, links: Routes) -> StepSeconds:
        forward, backward = self._passes(layout)
        exposed, hidden = self._reduction(layout, links)
        optimizer = self._optimizer(layout)
        compute = layout.accumulation * float((forward + backward).max())
        if layout.stages == 1:
            waiting = max(hidden - compute, (1 - HIDDEN) * hidden)
            return StepSeconds(
                compute=compute, communication=exposed + waiting, optimizer=optimizer
            )
        sends = tuple(self._sends(layout, links))
        passes = tuple(forward.tolist()), tuple(backward.tolist())
        makespan = _makespan(layout.schedule, *passes, layout.accumulation, sends)
        return StepSeconds(
            compute=compute,
            communication=exposed,
            idle=makespan - compute,
            optimizer=optimizer,
        )

    def _sends(self, layout: Layout, links: Routes) -> list[float]:
        """Seconds of one micro-batch's transfer over each cut."""
        crossing = self.costs[layout.autocast or layout.precision].crossing
        return [
            layout.micro_batch * crossing[cut] / link.bandwidth + link.latency
            for cut, link in zip(layout.cuts, links.boundaries, strict=True)
        ]

    def _reduction(self, layout: Layout, links: Routes) -> tuple[float, float]:
        """Seconds of the slowest stage's collectives: for which computation waits, and behind which
        it may hide them."""
        # What a CPU copies for a pipeline's messages depends on its passes.
        shared = layout if links.replicas.copying else _reduced(layout)
        key = (shared, links.replicas)
        if key not in self._slowest:
            self._slowest[key] = self._slowest_stage(*key)
        exposed, hidden = self._slowest[key]
        moved = self._through_host(layout)
        return (exposed, hidden + moved) if layout.offload_param else (exposed + moved, hidden)

    @cached_property
    def _slowest(self) -> dict[tuple[Layout, Link], tuple[float, float]]:
        """What `_slowest_stage` has found: layouts that differ in their passes share it."""
        return {}

    def _slowest_stage(self, layout: Layout, link: Link) -> tuple[float, float]:
        """As `_reduction`, without what passes through host memory."""
        costs = self.costs[layout.autocast or layout.precision]
        exposed = hidden = 0.0
        for stage in _transfers(costs, layout, self.boxes):
            hides, waits = self._collectives(stage, link, _overlapped(layout))
            exposed, hidden = max(exposed, waits), max(hidden, hides)
        return exposed, hidden

    def _collectives(
        self, stage: Sequence[Transfer], link: Link, overlapped: Collection[str]
    ) -> tuple[float, float]:
        """Seconds of a stage's collectives: those behind computation, and those before it.

        What a CPU copies for messages hides behind nothing: it would compute meanwhile. Nor does a
        reduction in a single bucket, which is full when the backward pass is over.
        """
        hidden = exposed = 0.0
        for each in stage:
            if each.kind == "reduce":
                exposed += each.bytes * self._per_reduced_byte
            copied = copying_seconds(each, link, backend=self.backend)
            if each.operation == "send":
                exposed += copied
                continue
            took = seconds(each, link, backend=self.backend)
            if each.kind in overlapped and not (each.kind == "reduce" and each.calls == 1):
                hidden += took - copied
                exposed += copied
            else:
                exposed += took
        return hidden, exposed

    def _through_host(self, layout: Layout) -> float:
        """Seconds between device and host memory: gradients and weights of offloaded states, and
        offloaded parameters before every pass."""
        if not layout.offload_optimizer:
            return 0.0
        parameters = self._parameters(layout) / layout.replicas
        width = _WIDTH[layout.precision]
        # Gradients leave after each micro-batch from stage 2 on, new weights return once.
        passes = layout.accumulation if layout.zero_stage > 1 else 1
        moved = parameters * width * (passes + 1)
        if layout.offload_param:
            moved += parameters * width * 2 * layout.accumulation
        return moved / (self.gpu.host * MEMORY_EFFICIENCY)

    def _optimizer(self, layout: Layout) -> float:
        if self.profile is not None:
            # Not shared under ZeRO: what a rank saves, it spends on flat copies of its part.
            whole = self.costs[layout.autocast or layout.precision].parameters
            return self.profile.optimizer * self._parameters(layout) / whole
        share = layout.replicas if layout.zero_stage else 1
        rate = self.gpu.host if layout.offload_optimizer else self.gpu.bandwidth
        touched = OPTIMIZER_TRAFFIC * self._parameters(layout) / share
        return touched / (rate * MEMORY_EFFICIENCY)

    @cached_property
    def _per_reduced_byte(self) -> float:
        """Seconds that a CPU copies for each byte of reduced gradients."""
        if self.profile is None:
            return 0.0
        costs = self.costs[self.profile.precision]
        return self.profile.reduction / (costs.parameters * _WIDTH["fp32"])

    def _parameters(self, layout: Layout) -> int:
        """Parameters of the largest stage."""
        counts = _counts(self.costs[layout.autocast or layout.precision])
        return int(np.add.reduceat(counts, (0, *layout.cuts)).max())


def _overlapped(layout: Layout) -> Collection[str]:
    """The kinds of transfers behind which the device computes."""
    if layout.zero_stage == 3:
        return ("reduce", "gather")
    # DeepSpeed's own reduction begins early only under ZeRO-2, and then waits for every bucket.
    return ("reduce",) if layout.overlapped and layout.owned and layout.stages == 1 else ()


def _reduced(layout: Layout) -> Layout:
    """A layout with the same collectives: those of a pipeline do not depend on its passes, after
    which they come."""
    if layout.stages == 1 or layout.sync_bn:
        return layout
    return replace(layout, micro_batch=1, accumulation=1, schedule="1f1b", recompute=0)


@lru_cache(maxsize=4096)
def _transfers(costs: Cost, layout: Layout, boxes: float) -> tuple[tuple[Transfer, ...], ...]:
    return transfers(costs, layout, boxes=boxes)


@lru_cache(maxsize=64)
def _counts(costs: Cost) -> np.ndarray:
    return np.array([node.parameters for node in costs.nodes])


def _least_makespan(
    schedule: str, forward: np.ndarray, backward: np.ndarray, micro_batches: int
) -> float:
    """A lower bound of the seconds from the first forward pass to the end of the last pass."""
    first = np.cumsum(forward) - forward
    busy = first + micro_batches * (forward + backward)
    if schedule == "1f1b":
        return float((busy + np.cumsum(backward) - backward).max())
    # W of micro-batch k runs after B of k + lag: before a stage's last B at least m - 1 - lag of
    # them. Then the gradient passes back, and the first stage ends with a W.
    weights = WEIGHTS_SHARE * backward
    inputs = backward - weights
    stages = len(forward)
    early = np.maximum(micro_batches - 1 - _lags(stages, micro_batches), 0)
    last = first + micro_batches * (forward + inputs) + early * weights
    return float(max(busy.max(), (last + np.cumsum(inputs) - inputs + weights[0]).max()))


@lru_cache(maxsize=4096)
def _lags(stages: int, micro_batches: int) -> np.ndarray:
    """(stages,) of each stage's `Division.lag`."""
    return np.array([division(stages, stage, micro_batches).lag for stage in range(stages)])


@lru_cache(maxsize=4096)
def _makespan(
    schedule: str,
    forward: tuple[float, ...],
    backward: tuple[float, ...],
    micro_batches: int,
    sends: tuple[float, ...],
) -> float:
    if schedule == "1f1b":
        return simulate(forward, backward, micro_batches, sends).makespan
    # Of a convolution, both parts of a backward pass take as many FLOPs.
    half = [WEIGHTS_SHARE * each for each in backward]
    inputs = [each - part for each, part in zip(backward, half, strict=True)]
    return simulate_split(forward, inputs, half, micro_batches, sends).makespan
