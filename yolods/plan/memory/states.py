"""What DeepSpeed holds on a rank besides activations: weights, states, gradients and buffers.

The rules are those of deepspeed 0.19.8. In its file runtime/zero/stage_1_and_2.py (Z12),
runtime/zero/stage3.py (Z3) and runtime/fp16/unfused_optimizer.py (UNF), with P parameters in e
bytes each, D replicas, and k state tensors of the optimizer per weight:

    ZeRO                weights   masters    states    gradients between micro-batches
    0, fp32             e P       -          4 k P     e P
    0, bf16 and fp16    e P       4 P        4 k P     e P                (UNF:78)
    1                   e P       4 P / D    4 k P / D e P                (Z12:560)
    2                   e P       4 P / D    4 k P / D e P / D            (Z12:1039)
    3                   e P / D   4 P / D    4 k P / D e P / D, always    (Z3:1160, Z3:791)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from yolods.model.graph.graph import Graph
from yolods.plan.layout import PERSISTENT, PREFETCHED, Layout

FP32 = 4
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


STATE_TENSORS = {
    "SGD": 1,
    "RMSprop": 2,
    **dict.fromkeys(("Adam", "AdamW", "Adamax", "NAdam", "RAdam"), 2),
}
"""State tensors per weight of each of `OPTIMIZERS`. Finding out by a step would take seconds, which
torch's import of its compiler costs."""


@dataclass(frozen=True)
class Parameters:
    """The parameters of one stage, in elements."""

    trained: tuple[int, ...]
    """Elements of each parameter that is trained."""
    frozen: int
    """Elements of all others."""
    statistics: int
    """Elements of BatchNorm's running means and variances, which are fp32."""

    @property
    def total(self) -> int:
        """Elements of all trained parameters."""
        return sum(self.trained)

    @property
    def largest(self) -> int:
        """Elements of the largest trained parameter."""
        return max(self.trained, default=0)

    @property
    def small(self) -> int:
        """Elements of the trained parameters that ZeRO-3 never partitions in use."""
        return sum(each for each in self.trained if each <= PERSISTENT)


def state_tensors(optimizer: str) -> int:
    """State tensors of a weight's shape that an optimizer keeps, with its default arguments.

    Args:
        optimizer: a key of `OPTIMIZERS`.
    """
    return STATE_TENSORS[optimizer]


@lru_cache(maxsize=4096)
def parameters_of(graph: Graph, nodes: range) -> Parameters:
    """The parameters of these nodes."""
    names = [name for index in nodes for name in graph.nodes[index].modules]
    parts = [graph.skeleton.get_submodule(name) for name in names]
    weights = [weight for part in parts for weight in part.parameters()]
    return Parameters(
        tuple(weight.numel() for weight in weights if weight.requires_grad),
        sum(weight.numel() for weight in weights if not weight.requires_grad),
        sum(
            buffer.numel()
            for part in parts
            for buffer in part.buffers()
            if buffer.is_floating_point()
        ),
    )


# Wide: one field for each thing that DeepSpeed allocates at a time of its own.
@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Bytes on a rank besides activations, by the time at which they exist."""

    weights: int
    """Always: parameters, and running statistics with the engine's copy of them."""
    states: int
    """Always: masters and optimizer states."""
    moving_average: int
    """Always."""
    buffers: int = 0
    """Always: buffers for communication."""
    gathered: int = 0
    """From the first forward pass to the last use of each: parameters that ZeRO-3 has gathered."""
    gathering: int = 0
    """In forward passes: what they were gathered in."""
    between: int = 0
    """From the first backward pass to the step: gradients."""
    growing: int = 0
    """For every element whose gradient is complete, in the first backward pass of a step."""
    bucket: int = 0
    """In a backward pass, from the first gradient on: the bucket."""
    flush: int = 0
    """Elements after which the bucket is emptied."""
    flushed: int = 0
    """From then on in the same backward pass: reduced gradients."""
    step: int = 0
    """In the optimizer's step, in place of `between`: gradients as the optimizer reads them."""
    host: int = 0
    """In host memory, always: offloaded states, the moving average of them, and the snapshot."""


def holdings(layout: Layout, parameters: Parameters, kept: int) -> Holdings:
    """What DeepSpeed holds on a rank.

    Args:
        layout: the rank's.
        parameters: of its stage.
        kept: result of `state_tensors`.
    """
    rule = (_whole, _flat, _flat, _pieces)[layout.zero_stage]
    return rule(layout, parameters, kept)


def _whole(layout: Layout, parameters: Parameters, kept: int) -> Holdings:
    """ZeRO-0."""
    size, total = BYTES[layout.precision], parameters.total
    low = layout.precision != "fp32"
    masters = FP32 * total if low else 0
    states = FP32 * kept * total
    return Holdings(
        weights=_weights(parameters, size, total),
        states=masters + states,
        moving_average=FP32 * (total + parameters.statistics),
        between=size * total,
        growing=size,
        # fp32 copies for the masters, or the copies that the replicas exchange.
        step=(size + (FP32 if low else size)) * total,
        host=_snapshot(parameters, FP32 * total, states),
    )


def _flat(layout: Layout, parameters: Parameters, kept: int) -> Holdings:
    """ZeRO-1 and 2."""
    size, total = BYTES[layout.precision], parameters.total
    share = math.ceil(total / layout.replicas)
    masters, states = FP32 * share, FP32 * kept * share
    offloads = layout.offload_optimizer
    once = layout.once and layout.owned and layout.replicas > 1 and layout.accumulation > 1
    keeps = layout.zero_stage == 1 or once
    bucket = layout.bucket(total)
    reduced = 0 if offloads else size * share
    held = Holdings(
        weights=_weights(parameters, size, total),
        states=masters + states,
        moving_average=FP32 * (share + parameters.statistics),
        between=size * total if keeps else reduced,
        growing=size if keeps else 0,
        bucket=size * bucket,
        flush=bucket,
        flushed=0 if keeps else reduced,
        step=0 if offloads else _flattened(size, share),
        host=_snapshot(parameters, masters, states),
    )
    if not offloads:
        return held
    # The masters' gradients, new weights on their way to the device, and the gradients of earlier
    # micro-batches, which ZeRO-2 adds up on the host (Z12:552, Z12:941, Z12:1824); one gradient on
    # its way, at both ends (Z12:653).
    accumulated = size * share if not keeps and layout.accumulation > 1 else 0
    further = (FP32 + size) * share + accumulated + size * parameters.largest
    return _moved(held, FP32 * parameters.statistics, further, size * parameters.largest)


def _pieces(layout: Layout, parameters: Parameters, kept: int) -> Holdings:
    """ZeRO-3.

    With the default limits it prefetches the parameters of the whole model at once if they have
    less than 5e7 elements, copies each out of the buffer, and lets go of the buffer after the last
    forward that uses one of them (zero/partition_parameters.py:795,
    partitioned_param_coordinator.py). A single rank uses its partitions as they are, unless they
    are in host memory (offload_param).
    """
    size, total = BYTES[layout.precision], parameters.total
    share = math.ceil(total / layout.replicas)
    away = layout.offload_param
    alone = layout.replicas == 1 and not away
    whole = 0 if alone else parameters.small
    gathered = 0 if alone else size * (total - parameters.small)
    masters, states = FP32 * share, FP32 * kept * share
    held = Holdings(
        weights=_weights(parameters, size, whole if away else share + whole),
        states=masters + states,
        moving_average=FP32 * (share + parameters.statistics),
        buffers=size * layout.bucket(total),
        gathered=gathered,
        gathering=min(gathered, size * PREFETCHED),
        between=0 if layout.offload_optimizer else size * share,
        step=0 if layout.offload_optimizer else _flattened(size, share),
        host=_snapshot(parameters, masters, states) + size * share * away,
    )
    if not layout.offload_optimizer:
        return held
    # The masters' gradients, and the reduced gradients (Z3:1338, Z3:791).
    return _moved(held, FP32 * parameters.statistics, (FP32 + size) * share, 0)


def _moved(held: Holdings, statistics: int, further: int, buffers: int) -> Holdings:
    """With masters, states and their average in host memory.

    Args:
        statistics: bytes of the running statistics' average, which stays.
        further: bytes in host memory besides.
        buffers: bytes on the device besides.
    """
    moved = held.states + held.moving_average - statistics
    return replace(
        held,
        states=0,
        moving_average=statistics,
        buffers=held.buffers + buffers,
        host=held.host + moved + further,
    )


def _flattened(size: int, share: int) -> int:
    """Reduced gradients, their flat copy, and that in fp32 (Z12:3086)."""
    return (2 * size + (0 if size == FP32 else FP32)) * share


def _weights(parameters: Parameters, size: int, held: int) -> int:
    """Parameters, running statistics, and their copy at the beginning of a step."""
    return size * (held + parameters.frozen) + 2 * FP32 * parameters.statistics


def _snapshot(parameters: Parameters, masters: int, states: int) -> int:
    """Masters, states, both averages and the statistics (`TrainingState._moving`)."""
    return 2 * masters + states + 2 * FP32 * parameters.statistics
