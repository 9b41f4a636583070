"""Builds this rank's stage of a pipeline from a blueprint: costs, cuts, mesh, layers and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yolods.distributed.mesh import Mesh, Order, choose_order
from yolods.distributed.world import Ranks
from yolods.engine.build import build_pipeline
from yolods.engine.pipeline.engine import PipelineEngine, StageBoundaries
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import Graph, live
from yolods.model.graph.stage import Stage
from yolods.model.initialise import initialises
from yolods.optim.optimizers import OptimizerChoice
from yolods.plan.partition import table
from yolods.plan.profile import measure
from yolods.plan.stage_plan import DTYPE_BYTES, StagePlan, choose, counted, terms_of

if TYPE_CHECKING:
    from yolods.config import RunConfig


def plan_stages(blueprint: Blueprint, config: RunConfig, ranks: Ranks) -> StagePlan:
    """Choose the cuts, the same on all ranks. A collective.

    Raises:
        UserError: see `yolods.plan.stage_plan.choose`; on every rank.
    """
    costs = counted(blueprint, config)
    terms = terms_of(config, seconds=_measured(costs.graph, config, ranks), memory=_memory(ranks))
    found = ranks.main_first(lambda: choose(costs, config, terms))
    return StagePlan(
        costs.graph, found, table(found, costs, terms), measured=terms.seconds is not None
    )


def _measured(graph: Graph, config: RunConfig, ranks: Ranks) -> tuple[float, ...] | None:
    """Seconds of each node's forward and backward pass for a micro-batch. A collective: rank 0
    measures for all, so that all choose the same cuts.

    None on a CPU, where ranks share the cores and times mean little; FLOPs replace them.
    """
    if ranks.device.type != "cuda":
        return None
    ds = config.deepspeed
    return ranks.main_first(
        lambda: measure(
            graph, config.imgsz, ds.micro_batch, ranks.device, ds.autocast or ds.precision
        )
    )


def _memory(ranks: Ranks) -> float | None:
    """Bytes of this rank's GPU that a stage may use; None on a CPU, which has no limit here."""
    if ranks.device.type != "cuda":
        return None
    return 0.9 * torch.cuda.get_device_properties(ranks.device).total_memory


def order_of(plan: StagePlan, config: RunConfig, ranks: Ranks) -> Order:
    """The order of ranks that keeps the heavier traffic within hosts of this host's size."""
    ds = config.deepspeed
    # Each micro-batch sends activations forward and as many bytes of gradients back.
    moved = [2 * ds.accumulation * row.sent_bytes for row in plan.rows[:-1]]
    gradients = [row.parameters * DTYPE_BYTES[ds.precision] for row in plan.rows]
    return choose_order(
        len(plan.rows), ranks.size // len(plan.rows), ranks.local_size, moved, gradients
    )


def build_stage(
    blueprint: Blueprint,
    plan: StagePlan,
    config: RunConfig,
    choice: OptimizerChoice,
    ranks: Ranks,
    class_weights: Tensor | None,
) -> tuple[PipelineEngine, str]:
    """This rank's engine, and a line about transferred weights. A collective.

    A rank holds only the layers of its own stage, and reads only their weights. Only if a user's
    yaml has layers that `initialise` does not know does it build the whole model, in host memory.
    """
    ds = config.deepspeed
    assert ds.pipeline is not None
    stages = ds.pipeline.stages
    # From rank 0, because hosts may have different numbers of ranks and all ranks need the same
    # mesh.
    mesh = Mesh(ranks, stages, ranks.from_main(order_of(plan, config, ranks)))
    first, last = plan.partition.bounds[mesh.stage : mesh.stage + 2]
    stage = Stage(plan.graph, first, last, recompute=ds.pipeline.activation_checkpoint_interval)
    note = _fill(stage, blueprint, config)
    cut = StageBoundaries(before=live(plan.graph, first), after=live(plan.graph, last))
    return build_pipeline(stage, blueprint.head, cut, config, choice, mesh, class_weights), note


def _fill(stage: Stage, blueprint: Blueprint, config: RunConfig) -> str:
    weights, by_name = None if config.resume else config.weights, config.hyper.cls_remap
    if initialises(blueprint.meta):
        values = blueprint.values(weights, by_name=by_name)
        for name, layer in stage.named_modules():
            values.fill(name, layer)
        return values.note
    # Some of its layers get their values only from their own constructors.
    net, note = blueprint.whole(weights, by_name=by_name)
    given = net.state_dict()
    stage.load_state_dict({name: given[name] for name in stage.state_dict()})
    return note
