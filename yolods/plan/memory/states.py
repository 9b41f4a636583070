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

import importlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.model.graph.graph import Graph
from yolods.plan.layout import Layout

FP32 = 4
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
PERSISTENT = 100_000
"""Elements up to which ZeRO-3 keeps a parameter whole (zero/config.py:228)."""


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


@lru_cache(maxsize=32)
def state_tensors(optimizer: str) -> int:
    """State tensors of a weight's shape that an optimizer keeps, found by one step of two numbers.

    Args:
        optimizer: a key of `OPTIMIZERS`, with its default arguments.
    """
    entry = OPTIMIZERS[optimizer]
    module, _, name = entry.made_by.partition(":")
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    made = getattr(importlib.import_module(module), name)([weight], **entry.arguments(0.9))
    made.step()
    found = made.state[weight].values()
    return sum(isinstance(each, torch.Tensor) and each.shape == weight.shape for each in found)


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
    """In forward and backward passes: parameters that ZeRO-3 has gathered."""
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
    keeps = layout.zero_stage == 1
    bucket = size * layout.reduce_bucket
    return Holdings(
        weights=_weights(parameters, size, total),
        states=masters + states,
        moving_average=FP32 * (share + parameters.statistics),
        between=size * (total if keeps else share),
        growing=size if keeps else 0,
        bucket=bucket,
        flush=layout.reduce_bucket,
        flushed=0 if keeps else size * share,
        step=(size + FP32) * share,
        host=_snapshot(parameters, masters, states),
    )


def _pieces(layout: Layout, parameters: Parameters, kept: int) -> Holdings:
    """ZeRO-3."""
    size, total = BYTES[layout.precision], parameters.total
    share = math.ceil(total / layout.replicas)
    masters, states = FP32 * share, FP32 * kept * share
    return Holdings(
        weights=_weights(parameters, size, share),
        states=masters + states,
        moving_average=FP32 * (share + parameters.statistics),
        buffers=size * layout.reduce_bucket,
        gathered=size * total,
        between=size * share,
        step=(size + FP32) * share,
        host=_snapshot(parameters, masters, states),
    )


def _weights(parameters: Parameters, size: int, held: int) -> int:
    """Parameters, running statistics, and their copy at the beginning of a step."""
    return size * (held + parameters.frozen) + 2 * FP32 * parameters.statistics


def _snapshot(parameters: Parameters, masters: int, states: int) -> int:
    """Masters, states, both averages and the statistics (`TrainingState._moving`)."""
    return 2 * masters + states + 2 * FP32 * parameters.statistics
