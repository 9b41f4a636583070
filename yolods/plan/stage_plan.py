"""A run's plan: where its model is cut into stages, under the run's settings.

Pure, so any process can compute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolods.errors import Faults
from yolods.model.blueprint import Blueprint
from yolods.model.freezing import is_frozen, marks_of
from yolods.model.graph.graph import Graph, build_graph
from yolods.plan.cost import Cost, cost
from yolods.plan.partition import Partition, StageRow, partition, render
from yolods.plan.stage_costs import Terms

if TYPE_CHECKING:
    from yolods.config import RunConfig

GIB = 2**30
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StagePlan:
    """Where a model is cut, and the costs of its stages."""

    graph: Graph
    """The model's nodes."""
    partition: Partition
    """The nodes of each stage."""
    rows: tuple[StageRow, ...]
    """The costs of each stage."""
    measured: bool
    """Whether the seconds in the rows were measured on this device."""

    @property
    def lines(self) -> list[str]:
        """The table, for the screen and the log."""
        note = (
            "ms: measured here"
            if self.measured
            else "ms: assumed, at 100 TFLOP/s; only their ratios are meaningful"
        )
        return [*render(self.rows).splitlines(), note]


def counted(blueprint: Blueprint, config: RunConfig) -> Cost:
    """The costs of the model's nodes at the run's image size and precision."""
    ds = config.deepspeed
    # Activations under autocast have 2 bytes, in bf16 as in fp16.
    compute = "bf16" if ds.autocast else ds.precision
    return cost(build_graph(blueprint.meta), config.imgsz, DTYPE_BYTES[compute])


def terms_of(
    config: RunConfig, *, seconds: tuple[float, ...] | None = None, memory: float | None = None
) -> Terms:
    """The terms by which the cuts are chosen.

    Args:
        seconds: measured seconds per node; None: computed from FLOPs.
        memory: bytes of the device, for a JSON that does not limit a stage; None: unlimited.
    """
    ds = config.deepspeed
    assert ds.pipeline is not None
    given = ds.pipeline.memory_gib
    return Terms(
        micro_batch=ds.micro_batch,
        micro_batches=ds.accumulation,
        seconds=seconds,
        memory_limit=memory if given is None else given * GIB,
        state_bytes=state_bytes(ds.precision, ds.zero_stage, ds.dp_size),
        recompute=ds.pipeline.activation_checkpoint_interval,
        schedule=ds.pipeline.schedule,
    )


def choose(costs: Cost, config: RunConfig, terms: Terms) -> Partition:
    """Choose the cuts according to the JSON's "pipeline" block.

    Args:
        costs: result of `counted`.
        terms: result of `terms_of`.

    Raises:
        UserError: more stages than nodes, cuts that do not ascend or do not exist, no partition
            within the memory limit, or a stage with nothing to train.
    """
    found = _cut(costs, config, terms)
    _refuse_idle(costs.graph, found, marks_of(config.hyper.freeze))
    return found


def check_stages(costs: Cost, config: RunConfig) -> None:
    """Refuse what the ranks would refuse, as far as it is known before they have measured anything.

    Raises:
        UserError: see `choose`.
    """
    found = _cut(costs, config, terms_of(config))
    block = config.deepspeed.pipeline
    # With "balanced" on a GPU, measured times will determine the cuts.
    if block is not None and (block.partition != "balanced" or config.device != "cuda"):
        _refuse_idle(costs.graph, found, marks_of(config.hyper.freeze))


def _cut(costs: Cost, config: RunConfig, terms: Terms) -> Partition:
    block = config.deepspeed.pipeline
    assert block is not None
    return partition(costs, block.stages, block.partition, terms)


def _refuse_idle(graph: Graph, found: Partition, marks: list[str]) -> None:
    """Refuse stages that have no weights to train, because an optimizer needs some.

    The same on all ranks.
    """
    faults = Faults()
    for stage in range(found.stages):
        nodes = [graph.nodes[index] for index in found.nodes_of(stage)]
        parts = [
            (name, graph.skeleton.get_submodule(name)) for node in nodes for name in node.modules
        ]
        weights = [f"{name}.{each}" for name, part in parts for each, _ in part.named_parameters()]
        if all(is_frozen(weight, marks) for weight in weights):
            why = "all of its weights are frozen" if weights else "it has no weights"
            faults.add(
                f"pipeline: stage {stage} ({nodes[0].name}..{nodes[-1].name}) has nothing to "
                f"train: {why}; cut elsewhere, or use fewer stages"
            )
    faults.raise_if_any()


def state_bytes(precision: str, zero_stage: int, replicas: int) -> float:
    """Bytes per parameter of weights, gradients, masters and Adam's moments, on one rank.

    ZeRO-1 partitions masters and moments, 12 bytes. In fp32 it still keeps masters separate from
    the weights (deepspeed 0.19.8, runtime/zero/stage_1_and_2.py clones them), whereas ZeRO-0
    updates the weights themselves.
    """
    if zero_stage == 0:
        return 16.0
    return (8.0 if precision == "fp32" else 4.0) + 12.0 / replicas
