"""Connects a DeepSpeed engine with the code that keeps its communication low."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from yolods.plan.buckets import bucket_elements
from yolods.zero.owned_reduction import OwnedReduction
from yolods.zero.resident import gather_together
from yolods.zero.whole_reduction import WholeReduction

if TYPE_CHECKING:
    from yolods.config.reducing import ReductionConfig


def bucket_of(reduction: ReductionConfig, module: nn.Module) -> int:
    """Elements of a bucket for this model or stage, where the JSON does not say.

    Args:
        reduction: how its gradients are reduced.
        module: the model or stage. Under ZeRO-3 its parameters may be divided already.
    """
    trained = [each for each in module.parameters() if each.requires_grad]
    elements = sum(getattr(each, "ds_numel", each.numel()) for each in trained)
    return bucket_elements(elements, whole=not reduction.overlapped)


def lower_traffic(engine: Any, reduction: ReductionConfig) -> None:
    """Let a new engine with several replicas reduce gradients as the configuration says, and gather
    small parameters together.

    Args:
        engine: the result of `deepspeed.initialize`.
    """
    if engine.dp_world_size == 1:
        return
    gather_together(engine.optimizer)
    if reduction.owned and OwnedReduction.fits(engine.optimizer):
        OwnedReduction(engine.optimizer, overlapped=reduction.overlapped)
    elif (
        engine.zero_optimization_stage() == 0
        and reduction.overlapped
        and WholeReduction.fits(engine)
    ):
        WholeReduction(engine, dist.group.WORLD, engine.zero_reduce_bucket_size())
