"""Connects a DeepSpeed engine with the code that keeps its communication low."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.distributed as dist
from torch import nn

from yolods.compression.powersgd import PowerSgd
from yolods.distributed.world import Ranks, Share
from yolods.plan.buckets import bucket_elements
from yolods.stability.controller import Stability, StockStability
from yolods.zero.owned_reduction import OwnedReduction
from yolods.zero.reduction import replace_reduction
from yolods.zero.resident import gather_together
from yolods.zero.whole_reduction import WholeReduction

if TYPE_CHECKING:
    from yolods.config import DeepSpeedConfig
    from yolods.config.reducing import ReductionConfig

log = logging.getLogger(__name__)
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
GRADIENT_SHARE = 50
"""Whole gradients may take one part in so many of a device's memory before ZeRO-2, which is chosen
to save it, sends those of every micro-batch. A yolov5x's take 344 MB in fp32."""


def bucket_of(reduction: ReductionConfig, module: nn.Module) -> int:
    """Elements of a bucket for this model or stage, where the JSON does not say.

    Args:
        reduction: how its gradients are reduced.
        module: the model or stage. Under ZeRO-3 its parameters may be divided already.
    """
    trained = [each for each in module.parameters() if each.requires_grad]
    elements = sum(getattr(each, "ds_numel", each.numel()) for each in trained)
    return bucket_elements(elements, whole=not reduction.overlapped)


def lower_traffic(engine: Any, ds: DeepSpeedConfig, ranks: Ranks) -> None:
    """Let a new engine with several replicas reduce gradients as the configuration says, and gather
    small parameters together. A collective.

    Args:
        engine: the result of `deepspeed.initialize`.
    """
    reduction = ds.reduction
    if engine.dp_world_size == 1:
        return
    gather_together(engine.optimizer)
    if reduction.owned and OwnedReduction.fits(engine.optimizer):
        once = ds.zero_stage == 2 and _adds_up(engine, ds, ranks)
        OwnedReduction(engine.optimizer, overlapped=reduction.overlapped, once=once)
    elif ds.zero_stage == 0 and reduction.overlapped and WholeReduction.fits(engine):
        WholeReduction(engine, dist.group.WORLD, engine.zero_reduce_bucket_size())


def _adds_up(engine: Any, ds: DeepSpeedConfig, ranks: Ranks) -> bool:
    """Whether ZeRO-2 adds up whole gradients over a step's micro-batches; if not, what that costs
    is told."""
    if ds.reduction.once != "auto":
        return ds.reduction.once == "step"
    trained = [each for each in engine.module.parameters() if each.requires_grad]
    size = engine.optimizer.gradient_accumulation_dtype.itemsize
    needed = sum(each.numel() for each in trained) * size
    memory = _least_memory(ranks)
    fits = needed * GRADIENT_SHARE <= memory
    if not fits and ds.accumulation > 1 and ranks.is_main:
        log.warning(
            "ZeRO-2 sends the gradients of each of %d micro-batches, %.1f times as much as those "
            "of a step, because whole gradients take %.0f of %.0f MiB of memory, more than 1/%d. "
            'To send them once: "yolods": {"accumulation": {"reduce": "step"}}',
            *(
                ds.accumulation,
                (ds.accumulation + 1) / 2,
                needed / 2**20,
                memory / 2**20,
                GRADIENT_SHARE,
            ),
        )
    return fits


def _least_memory(ranks: Ranks) -> int:
    """Bytes of the smallest device; on CPUs of a rank's share of its host's memory."""
    if ranks.device.type == "cuda":
        mine = torch.cuda.get_device_properties(ranks.device).total_memory
    else:
        mine = psutil.virtual_memory().total // ranks.local_size
    least = torch.tensor(mine, dtype=torch.int64, device=ranks.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def build_compression(
    engine: Any,
    ds: DeepSpeedConfig,
    stability: Stability | StockStability,
    ranks: Ranks,
    share: Share,
) -> PowerSgd | None:
    """What averages the gradients in place of DeepSpeed; None: DeepSpeed does.

    Raises:
        RuntimeError: this version of DeepSpeed is not supported.
    """
    settings = ds.own.compression
    if settings.kind == "none" or share.dp_size == 1:
        return None
    # Stock handling is refused with compression: only our verdict comes before the step.
    assert isinstance(stability, Stability)
    named = engine.module.named_parameters()
    found = PowerSgd(
        {name: weight.shape for name, weight in named if weight.requires_grad},
        rank=settings.rank,
        min_saving=settings.min_saving,
        ranks=share.dp_size,
        group=share.group,
        device=ranks.device,
    )
    replace_reduction(engine, lambda own: found.average_(own, stability.gradient_scale))
    return found


def compression_lines(compression: PowerSgd | None, ds: DeepSpeedConfig) -> list[str]:
    """What it saves, for the log; bytes per step that a rank of a ring sends.

    In a ring of N ranks each sends 2 (N - 1) / N of what is averaged, and (N - 1) / N of what is
    gathered.
    """
    if compression is None:
        return []
    passed, size = (ds.dp_size - 1) / ds.dp_size, _BYTES[ds.precision]
    before = 2 * passed * size * compression.elements / 1e6
    now = 2 * passed * 4 * compression.sent_elements / 1e6
    count = len(compression.compressed)
    lines = [
        f"PowerSGD of rank {ds.own.compression.rank} compresses the gradients of {count} "
        f"parameters: each rank sends {now:.2f} MB of gradients per step, without it {before:.2f}"
    ]
    if ds.zero_stage == 1:
        weights = passed * size * compression.elements / 1e6
        lines.append(
            f"ZeRO-1 also sends the updated weights, {weights:.2f} MB per rank and step; with ZeRO "
            "stage 0, every rank updates all weights, and only gradients are sent"
        )
    return lines
