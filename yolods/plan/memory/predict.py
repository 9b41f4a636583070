"""Stand-in: a rank's memory by formulas, until the traced model is there."""

from __future__ import annotations

from functools import cached_property

from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.plan.cost import cost
from yolods.plan.layout import Layout
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.terms import RankMemory
from yolods.plan.stage_costs import StageCosts, Terms

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class MemoryModel:
    """The memory of every layout of one model."""

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        boxes: BoxCounts,
        optimizer: str = "SGD",
        device: str = "cuda",
    ) -> None:
        self._blueprint, self._boxes, self._device = blueprint, boxes, device
        self._moments = 4 if optimizer in ("SGD", "auto") else 8
        self._matrices: dict[tuple[int, int, int], StageCosts] = {}

    @cached_property
    def _graph(self):
        return build_graph(self._blueprint.meta)

    def _costs(self, layout: Layout) -> StageCosts:
        width = _BYTES[layout.autocast or layout.precision]
        recompute = layout.recompute if layout.recompute >= 0 else 8
        key = (layout.imgsz, width, recompute)
        if key not in self._matrices:
            costs = cost(self._graph, layout.imgsz, width)
            self._matrices[key] = StageCosts(costs, Terms(recompute=recompute))
        return self._matrices[key]

    def ranks(self, layout: Layout) -> tuple[RankMemory, ...]:
        """The memory of one rank of every stage."""
        costs = self._costs(layout)
        bounds = (0, *layout.cuts, len(costs.cost.nodes))
        return tuple(
            self._rank(layout, costs, stage, bounds[stage], bounds[stage + 1])
            for stage in range(layout.stages)
        )

    def _rank(self, layout: Layout, costs: StageCosts, stage: int, a: int, b: int) -> RankMemory:
        width = _BYTES[layout.precision]
        parameters = int(costs.parameters[a, b])
        share = layout.replicas if layout.zero_stage else 1
        slots = min(layout.stages - stage, layout.accumulation) * layout.micro_batch
        own_master = layout.precision != "fp32" or layout.zero_stage > 0
        states = parameters * (self._moments + 4 * own_master) // share
        gradients = parameters * width // (layout.replicas if layout.zero_stage > 1 else 1)
        weights = parameters * width // (layout.replicas if layout.zero_stage > 2 else 1)
        anchors = layout.imgsz**2 // 64 * 21 // 16
        burst = 3300 + 12.5 * self._boxes.most
        loss = int(layout.micro_batch * anchors * burst) if stage == layout.stages - 1 else 0
        bucketed = layout.zero_stage and layout.stages == 1
        tensors = slots * float(costs.activations[a, b])
        tensors += layout.micro_batch * float(costs.passing[a, b])
        return RankMemory(
            weights=0 if layout.offload_param else weights,
            gradients=0 if layout.offload_optimizer else gradients,
            states=0 if layout.offload_optimizer else states,
            moving_average=0 if layout.offload_optimizer else 4 * parameters // share,
            buckets=layout.reduce_bucket * width if bucketed else 0,
            activations=int(tensors),
            loss=loss,
            reserve=int(0.1 * (tensors + loss)),
            host=(states + gradients + 4 * parameters // share if layout.offload_optimizer else 0)
            + (weights if layout.offload_param else 0),
        )
