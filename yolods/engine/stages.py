"""From a blueprint to this rank's stage of a pipeline: costs, cuts, the grid, and an engine around what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yolods.cluster.grid import Grid, Order, choose_order
from yolods.cluster.ranks import Ranks
from yolods.engine.build import build_pipeline
from yolods.engine.optim import OptimizerChoice
from yolods.engine.pipeline import Cut, PipelineEngine
from yolods.errors import Faults
from yolods.model.blueprint import Blueprint
from yolods.model.freezing import is_frozen, marks_of
from yolods.model.graph import Graph, build_graph, live
from yolods.model.initialise import initialise
from yolods.model.stage import Stage
from yolods.plan.cost import cost
from yolods.plan.partition import Partition, StageRow, partition, render, table
from yolods.plan.profile import measure
from yolods.plan.stages import Terms

if TYPE_CHECKING:
    from yolods.config import RunConfig

GIB = 2**30
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StagePlan:
    """Where a model is cut, and why."""

    graph: Graph
    """Its nodes."""
    partition: Partition
    """Which of them each stage runs."""
    rows: tuple[StageRow, ...]
    """What each stage takes."""

    measured: bool
    """Whether the seconds in the rows were measured on this device."""

    @property
    def lines(self) -> list[str]:
        """The table, for the screen and the log."""
        note = "ms: measured here" if self.measured else "ms: assumed, at 100 TFLOP/s; only their ratios mean anything"
        return [*render(self.rows).splitlines(), note]


def plan_stages(blueprint: Blueprint, config: RunConfig, ranks: Ranks) -> StagePlan:
    """Choose the cuts, alike on all ranks. A collective where nodes are measured.

    Raises:
        UserError: more stages than nodes, cuts that are out of order or range, or nothing fits the memory.
    """
    layout = config.deepspeed
    assert layout.pipeline is not None
    graph = build_graph(blueprint.meta)
    costs = cost(graph, config.imgsz, DTYPE_BYTES["bf16" if layout.autocast else layout.precision])
    terms = Terms(
        micro_batch=layout.micro_batch,
        micro_batches=layout.accumulation,
        seconds=_measured(graph, config, ranks),
        memory_limit=_memory_limit(layout.pipeline.memory_gib, ranks),
        state_bytes=state_bytes(layout.precision, layout.zero_stage, layout.ranks),
        recompute=layout.pipeline.activation_checkpoint_interval,
    )
    found = ranks.main_first(lambda: partition(costs, layout.pipeline.stages, layout.pipeline.partition, terms))
    _refuse_idle(graph, found, marks_of(config.hyper.freeze))
    return StagePlan(graph, found, table(found, costs, terms), measured=terms.seconds is not None)


def _refuse_idle(graph: Graph, found: Partition, marks: list[str]) -> None:
    """An optimizer needs weights: name every stage that would have none to train. Alike on all ranks."""
    faults = Faults()
    for stage in range(found.stages):
        nodes = [graph.nodes[index] for index in found.nodes_of(stage)]
        parts = [(name, graph.skeleton.get_submodule(name)) for node in nodes for name in node.modules]
        weights = [f"{name}.{each}" for name, part in parts for each, _ in part.named_parameters()]
        if all(is_frozen(weight, marks) for weight in weights):
            why = "all of its weights are frozen" if weights else "there are no weights in it"
            faults.add(
                f"pipeline: stage {stage} ({nodes[0].name}..{nodes[-1].name}) has nothing to train: {why}; "
                "cut elsewhere, or use fewer stages"
            )
    faults.raise_if_any()


def state_bytes(precision: str, zero_stage: int, replicas: int) -> float:
    """Bytes of weights, gradients, masters and Adam's moments a parameter, of a stage on one rank.

    ZeRO-1 shares out masters and moments, 12 bytes. In fp32 it still keeps masters apart from the weights (deepspeed
    0.19.8, runtime/zero/stage_1_and_2.py clones them), where ZeRO-0 steps the weights themselves.
    """
    if zero_stage == 0:
        return 16.0
    return (8.0 if precision == "fp32" else 4.0) + 12.0 / replicas


def _measured(graph: Graph, config: RunConfig, ranks: Ranks) -> tuple[float, ...] | None:
    """Seconds of each node on rank 0's device; on a CPU FLOPs say it, as ranks share its cores."""
    if ranks.device.type != "cuda":
        return None
    layout = config.deepspeed
    return ranks.main_first(
        lambda: measure(graph, config.imgsz, layout.micro_batch, ranks.device, layout.autocast or layout.precision)
    )


def _memory_limit(given: float | None, ranks: Ranks) -> float | None:
    if given is not None:
        return given * GIB
    if ranks.device.type != "cuda":
        return None
    return 0.9 * torch.cuda.get_device_properties(ranks.device).total_memory


def order_of(plan: StagePlan, config: RunConfig, ranks: Ranks) -> Order:
    """What lies side by side in the order of ranks, so that heavier traffic stays within hosts as large as this."""
    layout = config.deepspeed
    moved = [2 * layout.accumulation * row.sent_bytes for row in plan.rows[:-1]]
    gradients = [row.parameters * DTYPE_BYTES[layout.precision] for row in plan.rows]
    return choose_order(len(plan.rows), ranks.size // len(plan.rows), ranks.local_size, moved, gradients)


def build_stage(
    blueprint: Blueprint,
    plan: StagePlan,
    config: RunConfig,
    choice: OptimizerChoice,
    ranks: Ranks,
    class_weights: Tensor | None,
) -> tuple[PipelineEngine, str]:
    """This rank's engine, and a line about weights that were taken over. A collective.

    A rank holds the layers of its own stage and no others; only where weights are given is a whole model read, on
    the host, and let go.
    """
    layout = config.deepspeed
    assert layout.pipeline is not None
    stages = layout.pipeline.stages
    # Hosts may have different numbers of ranks, and all have to draw the same grid.
    grid = Grid(ranks, stages, ranks.from_main(order_of(plan, config, ranks)))
    first, last = plan.partition.bounds[grid.stage : grid.stage + 2]
    stage = Stage(plan.graph, first, last, recompute=layout.pipeline.activation_checkpoint_interval)
    note = _fill(stage, blueprint, config)
    cut = Cut(before=live(plan.graph, first), after=live(plan.graph, last))
    return build_pipeline(stage, blueprint.head, cut, config, choice, grid, class_weights), note


def _fill(stage: Stage, blueprint: Blueprint, config: RunConfig) -> str:
    initialise(stage, blueprint.strides, len(blueprint.names), blueprint.seed)
    if config.weights is None or config.resume:
        return ""
    net, note = blueprint.whole(config.weights, by_name=config.hyper.cls_remap)
    given = net.state_dict()
    stage.load_state_dict({name: given[name] for name in stage.state_dict()})
    return note
