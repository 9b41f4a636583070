"""What a layout has to send at least, whatever sends it.

P is what a rank sends to sum all gradients into one part per rank, or to collect all parameters
from their parts: (n - 1) / n of their bytes, on n replicas, by a ring.

    ZeRO-0      2P          an all-reduce of the gradients, which is a reduce-scatter and a gather
    ZeRO-1      2P          a reduce-scatter of the gradients, a gather of the updated parameters
    ZeRO-2      2P          the same where whole gradients are added up over a step (`Layout.once`)
                (G + 1)P    where they are divided after each of G micro-batches
    ZeRO-3      2GP         parameters are gathered for each micro-batch and kept for its backward
                            pass
    pipeline                activations to the next stage, their gradients back, labels to the last

Source: Rajbhandari et al. 2019, arXiv 1910.02054, section 7, where G is 1, and ZeRO-3 gathers a
second time for the backward pass (3P); DeepSpeed does so only for models above
"stage3_max_reuse_distance". Small parameters, which ZeRO-3 keeps whole, are gathered once per step,
so that a run of small layers sends less than 2GP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from yolods.model.freezing import Frozen
from yolods.plan.cost import Cost
from yolods.plan.layout import Layout
from yolods.plan.traffic.model_facts import StageFacts, stages_of, uncut
from yolods.plan.traffic.transfers import transfers

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Need:
    """What theory asks of one rank."""

    sent: float
    """Bytes per step; in a pipeline the mean of its stages."""
    layout: str
    """Name of the layout, and the formula of its bytes."""


def needed(stages: Sequence[StageFacts], layout: Layout, boundaries: float = 0.0) -> Need:
    """What a rank has to send in one step.

    Args:
        stages: of the pipeline, or the whole model.
        layout: the run's.
        boundaries: bytes that all stages of one replica send to each other in a step.
    """
    replicas = sum(_over_replicas(stage, layout) for stage in stages)
    sent = (replicas + boundaries) / len(stages)
    name = f"ZeRO-{layout.zero_stage} needs {_factor(layout)}P"
    return Need(sent, name if len(stages) == 1 else f"{len(stages)} stages need")


def need_of_whole(
    net: nn.Module, layout: Layout, frozen: Frozen = None, *, compressed: bool = False
) -> Need:
    """`needed` of a layout without a pipeline.

    Args:
        net: the model, on any device.
        frozen: the hyper-parameter `freeze`.
        compressed: whether gradients are compressed, so that a rank sends less than this.
    """
    need = needed([uncut(net, frozen)], layout)
    return replace(need, layout=f"without compression {need.layout}") if compressed else need


def need_of_stages(costs: Cost, layout: Layout, frozen: Frozen = None) -> Need:
    """`needed` of a pipeline.

    Args:
        costs: of the model, at the layout's image size and the precision of its activations.
        frozen: the hyper-parameter `freeze`.
    """
    boundaries = sum(
        each.bytes
        for stage in transfers(costs, layout, frozen=frozen)
        for each in stage
        if each.kind == "boundary"
    )
    return needed(stages_of(costs, layout.cuts, frozen), layout, boundaries)


def _factor(layout: Layout) -> int:
    """How many times P is sent."""
    times = _reductions(layout)
    return {0: 2, 1: 2, 2: times + 1, 3: 2 * times}[layout.zero_stage]


def _reductions(layout: Layout) -> int:
    """How many times per step gradients are divided among the ranks."""
    each_pass = layout.zero_stage == 3 or (layout.zero_stage == 2 and not layout.once)
    return layout.accumulation if each_pass else 1


def _over_replicas(stage: StageFacts, layout: Layout) -> float:
    """Bytes between the replicas of a stage."""
    part, size = (layout.replicas - 1) / layout.replicas, _BYTES[layout.precision]
    # Without ZeRO, DeepSpeed sends all gradients in the parameters' type, under autocast as well.
    casts = layout.autocast is not None and layout.zero_stage > 0
    reduced = sum(each.elements * (2 if casts and each.casts else size) for each in stage.trained)
    if layout.zero_stage == 0:
        return 2 * part * reduced
    kept = stage.weights if layout.zero_stage == 3 else stage.trained
    gathered = size * sum(each.elements for each in kept)
    times = _reductions(layout)
    again = layout.accumulation if layout.zero_stage == 3 else 1
    return part * (times * reduced + again * gathered)
