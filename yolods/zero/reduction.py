"""Replaces the reduction of gradients in DeepSpeed's optimizers without shards of gradients.

ZeRO 0 and 1 add up local gradients over a step's micro-batches and reduce them once, at the end.
Each calls its reduction through the instance, so it is replaced there and no installed file
changes.
Source: deepspeed/runtime/engine.py, `allreduce_gradients`, 0.19.8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Average = Callable[[Sequence[Tensor]], None]
"""Replaces the gradients of all trained parameters, in the model's order, by their mean over the
replicas."""

_NEEDS = {
    "DeepSpeedZeroOptimizer": (
        *("reduce_gradients", "overlapping_partition_gradients_reduce_epilogue"),
        *("get_gradient_for_reduction", "use_grad_accum_attribute", "gradient_accumulation_dtype"),
    ),
    "BF16_Optimizer": ("bf16_groups", "fp32_groups_gradients"),
    "FP16_UnfusedOptimizer": (),
}
"""What is read or replaced of each of DeepSpeed's optimizers."""


def replace_reduction(engine: Any, average: Average) -> None:
    """Have `average` reduce the gradients in place of DeepSpeed.

    Args:
        engine: the result of `deepspeed.initialize` under ZeRO 0 or 1, without offload, with
            "overlap_comm" and "contiguous_gradients" off.

    Raises:
        RuntimeError: this DeepSpeed reduces gradients in an unknown way.
    """
    optimizer, name = engine.optimizer, type(engine.optimizer).__name__
    weights = [weight for weight in engine.module.parameters() if weight.requires_grad]
    needs = () if isinstance(optimizer, torch.optim.Optimizer) else _NEEDS.get(name)
    missing = [each for each in needs or () if not hasattr(optimizer, each)]
    if needs is None or missing or not hasattr(engine, "buffered_allreduce_fallback"):
        import deepspeed

        raise RuntimeError(
            f"deepspeed {deepspeed.__version__}: {name} reduces gradients in another way than "
            "deepspeed 0.19.8. Install the versions of constraints.txt, or remove "
            '"yolods": {"compression": {...}}'
        )
    if name == "DeepSpeedZeroOptimizer":
        _replace_in_zero(optimizer, weights, average)
        return

    def reduce(grads: Any = None, elements_per_buffer: int = 0) -> None:
        average(_accumulated(optimizer, weights) if name == "BF16_Optimizer" else _own(weights))

    engine.buffered_allreduce_fallback = reduce


def _replace_in_zero(optimizer: Any, weights: Sequence[nn.Parameter], average: Average) -> None:
    """ZeRO-1: after the mean, DeepSpeed's own code cuts each rank's shard out of it."""

    def reduce(pipeline_parallel: bool = False) -> None:
        average([_of_zero(optimizer, weight) for weight in weights])
        # With empty buckets it sends nothing.
        optimizer.overlapping_partition_gradients_reduce_epilogue()

    optimizer.reduce_gradients = reduce


def _of_zero(optimizer: Any, weight: nn.Parameter) -> Tensor:
    gradient = optimizer.get_gradient_for_reduction(weight)
    if gradient is None:
        # The loss does not reach it on this rank, perhaps on another.
        gradient = torch.zeros_like(weight, dtype=optimizer.gradient_accumulation_dtype)
        attribute = "grad_accum" if optimizer.use_grad_accum_attribute else "grad"
        setattr(weight, attribute, gradient)
    return gradient.detach()


def _own(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """ZeRO-0: the gradients of the parameters themselves."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    return [weight.grad.detach() for weight in weights if weight.grad is not None]


def _accumulated(optimizer: Any, weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """ZeRO-1 in bf16 with fp32 accumulation: parts of one flat fp32 tensor per group."""
    groups = zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True)
    found = {
        id(weight): gradient.view(weight.shape)
        for members, gradients in groups
        for weight, gradient in zip(members, gradients, strict=True)
    }
    return [found[id(weight)] for weight in weights]
