"""Predicts the memory of every rank of a layout, by term.

Four moments of a step can be the fullest: the end of a forward pass, the loss, some moment of a
backward pass, and the optimizer's step. Each is added up from the traced timeline of the passes
(`timeline`), the loss (`loss_burst`) and what DeepSpeed holds meanwhile (`states`); the fullest
moment is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import Graph, build_graph, live
from yolods.model.graph.stage import segment_length
from yolods.plan.layout import Layout
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.loss_burst import loss_burst
from yolods.plan.memory.partitioning import (
    copied_elements,
    dividing_elements,
    exchanging_bytes,
    moved_elements,
    released_elements,
)
from yolods.plan.memory.segments import reserved_share
from yolods.plan.memory.states import (
    BYTES,
    Holdings,
    holdings,
    parameters_of,
    state_tensors,
)
from yolods.plan.memory.terms import RankMemory
from yolods.plan.memory.timeline import Timeline, stage_timeline, whole_timeline
from yolods.plan.memory.trace import (
    Trace,
    Way,
    shapes_of,
    trace_detector,
    trace_nodes,
    trace_recomputed,
    trace_stage,
)
from yolods.plan.zero_bubble import flying


class MemoryModel:
    """The memory of one model's ranks under any layout.

    The first layout of a kind is traced, which takes seconds for the largest models. Further ones
    cost formulas only, unless a pipeline recomputes: its stages are traced one by one.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        boxes: BoxCounts,
        optimizer: str = "SGD",
        device: str = "cuda",
    ) -> None:
        """
        Args:
            blueprint: the model.
            boxes: boxes per training sample.
            optimizer: a key of `OPTIMIZERS`.
            device: "cuda", or "cpu" for ranks on a CPU. There the device's memory is the host's:
                `host` is then what a GPU's rank would have in host memory, and a part of the same.
        """
        self._blueprint, self._boxes, self._device = blueprint, boxes, device
        self._kept = state_tensors(optimizer)
        self._traces: dict[tuple[object, ...], Trace] = {}
        self._shares: dict[tuple[int, int], float] = {}
        self._losses: dict[tuple[object, ...], int] = {}
        self._shapes: dict[int, dict[str, tuple[int, ...]]] = {}

    @cached_property
    def graph(self) -> Graph:
        """The model's nodes."""
        return build_graph(self._blueprint.meta)

    def ranks(self, layout: Layout) -> tuple[RankMemory, ...]:
        """The memory of a rank of each stage when it holds most.

        All replicas of a stage hold the same, up to the alignment of their shards.
        """
        return tuple(self._rank(layout, stage) for stage in range(layout.stages))

    def least(self, layout: Layout) -> tuple[RankMemory, ...]:
        """What a rank of each stage holds at least; a search dismisses layouts by it.

        That is `ranks`, unless a stage recomputes and would have to be traced. Of its passes'
        tensors, this counts those that it keeps for its backward passes, and those that the largest
        recomputed segment leaves behind.
        """
        if not (layout.cuts and layout.recompute):
            return self.ranks(layout)
        return tuple(self._least(layout, stage) for stage in range(layout.stages))

    def _least(self, layout: Layout, stage: int) -> RankMemory:
        nodes = _nodes_of(self.graph, layout, stage)
        held = holdings(layout, parameters_of(self.graph, nodes), self._kept)
        flights = flying(layout.schedule, layout.stages, stage, layout.accumulation)
        starts = range(nodes.start, nodes.stop, layout.recompute)
        kept = flights * sum(self._bytes(layout, start) for start in starts)
        segment = max(self._segment(layout, start, nodes.stop) for start in starts)
        return RankMemory(
            weights=held.weights + held.gathered,
            states=held.states,
            moving_average=held.moving_average,
            buckets=held.buffers,
            activations=kept + segment,
            host=held.host + _images(self.graph, layout, stage),
        )

    def _segment(self, layout: Layout, start: int, stop: int) -> int:
        """Bytes that the forward pass of the segment from node `start` on leaves behind."""
        nodes = range(start, min(start + layout.recompute, stop))
        trace = self._traced(replace(layout, recompute=0), nodes)
        return stage_timeline(trace, nodes, layout.micro_batch, 0, 0).kept

    def _rank(self, layout: Layout, stage: int) -> RankMemory:
        moments = self._moments(layout, stage)
        if self._device == "cpu":
            return max(moments, key=lambda moment: moment.device + moment.host)
        return max(moments, key=lambda moment: moment.device)

    def _moments(self, layout: Layout, stage: int) -> Iterator[RankMemory]:
        """The moments of a step that can be the fullest."""
        nodes = _nodes_of(self.graph, layout, stage)
        held = holdings(layout, parameters_of(self.graph, nodes), self._kept)
        passes = self._timeline(layout, nodes)
        waiting = flying(layout.schedule, layout.stages, stage, layout.accumulation) - 1
        others = waiting * passes.kept + self._crossing(layout, nodes)
        loss = self._loss(layout) if stage == layout.stages - 1 else 0
        host = held.host + _images(self.graph, layout, stage)
        rank = _Rank(held, host, self._reserved(layout, nodes))
        # Whether a backward pass of the step was completed before this stage holds most.
        later = layout.accumulation > waiting + 1
        # ZeRO-3 has a buffer for them from the start.
        before = held.between if later or layout.zero_stage == 3 else 0
        whole = held.gathered
        yield rank.at(
            others + int(passes.forward.max()), before, gathered=whole, buckets=held.gathering
        )
        yield rank.at(others + passes.kept, before, gathered=whole, loss=loss)
        gathered, buckets = _around(layout, passes, held, on_host=self._device == "cpu")
        arrived, none = passes.arrived, np.zeros_like(passes.arrived)
        gradients = np.full_like(arrived, before) if before else arrived * held.growing
        if _exchanges(layout) and layout.zero_stage:
            if layout.accumulation > 1 and held.growing:
                # A pass before the last one of the step adds up whole gradients, without a bucket.
                first = gradients if layout.accumulation > 2 else arrived * held.growing
                yield rank.during(passes, others, first, none, none)
            gradients = gradients + _exchanged(layout, passes, held)
        elif not layout.cuts:
            # A pipeline fills the bucket after its last backward pass.
            gradients = gradients + held.flushed * (arrived > held.flush)
        yield rank.during(passes, others, gradients, buckets, gathered)
        if waiting and not later:
            # The second backward pass finds whole gradients, but a micro-batch less in flight.
            second = (waiting - 1) * passes.kept + self._crossing(layout, nodes, left=waiting)
            yield rank.during(passes, second, none + held.between, none, none)
        yield rank.at(0, held.step)

    def _timeline(self, layout: Layout, nodes: range) -> Timeline:
        if not layout.cuts:
            return whole_timeline(self._traced(layout, nodes), layout.micro_batch)
        received, sent = self._bytes(layout, nodes.start), self._bytes(layout, nodes.stop)
        if layout.recompute:
            passes = whole_timeline(self._traced(layout, nodes), layout.micro_batch)
            return Timeline(
                passes.forward + received,
                passes.backward + received + sent,
                passes.arrivals,
                passes.ended,
            )
        return stage_timeline(
            self._traced(layout, nodes), nodes, layout.micro_batch, received, sent
        )

    def _bytes(self, layout: Layout, cut: int) -> int:
        """Bytes of a micro-batch's values that cross a cut; 0 at both ends."""
        if not 0 < cut < len(self.graph.nodes):
            return 0
        if layout.imgsz not in self._shapes:
            self._shapes[layout.imgsz] = shapes_of(self.graph, layout.imgsz)
        shapes = self._shapes[layout.imgsz]
        elements = sum(math.prod(shapes[name]) for name in live(self.graph, cut))
        return elements * layout.micro_batch * BYTES[layout.autocast or layout.precision]

    def _crossing(self, layout: Layout, nodes: range, left: int | None = None) -> int:
        """What else a stage holds of the values that cross its cuts, while it computes.

        It receives the next pass's input or gradients ahead, and keeps what it sent last until the
        next drain (`PipelineEngine._start_receiving`, `_take_in`).

        Args:
            left: in its second backward pass, if no forward pass is left: the backward passes that
                are left, this one included.
        """
        if layout.accumulation < 2:
            return 0
        before, after = self._bytes(layout, nodes.start), self._bytes(layout, nodes.stop)
        return 2 * (before + after) if left is None else before + after * (left > 1)

    def _traced(self, layout: Layout, nodes: range) -> Trace:
        way, imgsz, recompute = (
            _way_of(layout, on_host=self._device == "cpu"),
            layout.imgsz,
            layout.recompute,
        )
        stage = nodes if layout.cuts and recompute else None
        key = (way, imgsz, recompute, stage, bool(layout.cuts))
        if key not in self._traces:
            self._traces[key] = self._trace(layout, nodes, way)
        return self._traces[key]

    def _trace(self, layout: Layout, nodes: range, way: Way) -> Trace:
        imgsz, recompute = layout.imgsz, layout.recompute
        if layout.cuts and recompute:
            shapes = self._shapes[imgsz]
            return trace_stage(self.graph, nodes, shapes, recompute, way, imgsz)
        if layout.cuts:
            return trace_nodes(self.graph, way, imgsz)
        if recompute:
            count = None if recompute < 0 else recompute
            length = segment_length(len(self.graph.nodes), count)
            return trace_recomputed(self.graph, length, way, imgsz)
        return trace_detector(self._blueprint.meta, way, imgsz)

    def _reserved(self, layout: Layout, nodes: range) -> float:
        """Bytes that the allocator holds beyond the passes' tensors, per byte of them.

        Weights, states and buffers are large and stay where they are, so they leave no gaps.
        """
        if self._device == "cpu":
            return 0.0
        trace = self._traced(layout, nodes)
        key = (id(trace), layout.micro_batch)
        if key not in self._shares:
            self._shares[key] = reserved_share(trace, layout.micro_batch) - 1
        return self._shares[key]

    def _loss(self, layout: Layout) -> int:
        """Bytes of the loss, its backward pass included."""
        way = _way_of(layout, on_host=self._device == "cpu")
        key = (way.computes, layout.imgsz, layout.micro_batch)
        if key not in self._losses:
            self._losses[key] = loss_burst(
                self._blueprint.head,
                self._boxes,
                layout.imgsz,
                layout.micro_batch,
                way.computes,
                on_host=self._device == "cpu",
            )
        return self._losses[key]


@dataclass(frozen=True)
class _Rank:
    """What a rank holds at every moment."""

    held: Holdings
    host: int
    """Bytes of host memory."""
    share: float
    """Bytes that the allocator holds beyond the passes' tensors, per byte of them."""

    def at(
        self,
        activations: int,
        gradients: int,
        *,
        buckets: int = 0,
        gathered: int = 0,
        loss: int = 0,
    ) -> RankMemory:
        """The memory of a moment, from the bytes that only some moments have."""
        return RankMemory(
            weights=self.held.weights + gathered,
            gradients=gradients,
            states=self.held.states,
            moving_average=self.held.moving_average,
            buckets=self.held.buffers + buckets,
            activations=activations,
            loss=loss,
            reserve=round(self.share * (activations + loss)),
            host=self.host,
        )

    def during(
        self,
        passes: Timeline,
        others: int,
        gradients: np.ndarray,
        buckets: np.ndarray,
        gathered: np.ndarray,
    ) -> RankMemory:
        """The memory of the fullest moment of a backward pass.

        Args:
            passes: of the micro-batch.
            others: bytes of activations besides it.
            gradients: (moments,) int64 bytes, as are `buckets` and `gathered`.
        """
        at = int((passes.backward + gradients + buckets + gathered).argmax())
        return self.at(
            others + int(passes.backward[at]),
            int(gradients[at]),
            buckets=int(buckets[at]),
            gathered=int(gathered[at]),
        )


def _around(
    layout: Layout, passes: Timeline, held: Holdings, *, on_host: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(moments,) int64 bytes of gathered parameters, and of buckets, in a backward pass."""
    total = int(passes.arrivals[:, 1].sum())
    size, bucket, replicas = BYTES[layout.precision], layout.bucket(total), layout.replicas
    if layout.zero_stage < 3:
        buckets = held.bucket * ((passes.arrived > 0) & (not layout.cuts))
        if _exchanges(layout):
            if layout.zero_stage:
                buckets += exchanging_bytes(passes, layout, bucket, size, gloo=on_host)
            elif layout.overlapped:
                buckets += size * copied_elements(passes, bucket)
        elif layout.zero_stage == 2:
            buckets += size * dividing_elements(passes, bucket, replicas, joins=replicas > 1)
        return np.zeros_like(passes.arrived), buckets
    beside = dividing_elements(passes, bucket, replicas, gloo=on_host)
    released = released_elements(passes) * (held.gathered > 0)
    return held.gathered - size * released, size * beside


def _exchanges(layout: Layout) -> bool:
    """Whether yolods' own reduction runs in the backward pass."""
    own = layout.zero_stage < 3 and layout.owned
    return own and layout.replicas > 1 and not layout.cuts


def _exchanged(layout: Layout, passes: Timeline, held: Holdings) -> np.ndarray:
    """(moments,) int64 bytes by which gradients change in a step's last backward pass, in which
    yolods' own reduction runs: whole ones move into the bucket, and a rank keeps its own part."""
    # The last bucket is emptied when the pass is over; a model of one bucket has no other.
    emptied = (passes.arrived > held.flush) | (np.arange(len(passes.arrived)) >= passes.ended)
    if not held.growing:
        return held.flushed * emptied
    if not layout.overlapped:
        return np.zeros_like(passes.arrived)
    total, size = int(passes.arrivals[:, 1].sum()), BYTES[layout.precision]
    part = 0 if layout.offload_optimizer else size * math.ceil(total / layout.replicas)
    return part * emptied - size * moved_elements(passes, layout.bucket(total))


def _nodes_of(graph: Graph, layout: Layout, stage: int) -> range:
    bounds = (0, *layout.cuts, len(graph.nodes))
    return range(bounds[stage], bounds[stage + 1])


def _images(graph: Graph, layout: Layout, stage: int) -> int:
    """Bytes of a step's images on the host, for a second run of it (`ReplayableBatches`)."""
    if stage:
        return 0
    return layout.accumulation * layout.micro_batch * graph.channels * layout.imgsz**2


def _way_of(layout: Layout, *, on_host: bool) -> Way:
    return Way(
        precision=layout.precision,
        autocast=layout.autocast,
        sync_bn=layout.sync_bn and layout.replicas > 1,
        on_host=on_host,
    )
