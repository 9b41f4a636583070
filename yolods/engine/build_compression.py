"""Connects a DeepSpeed engine with the compression of its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolods.compression.powersgd import PowerSgd
from yolods.distributed.world import Ranks, Share
from yolods.stability.controller import Stability, StockStability
from yolods.zero.reduction import replace_reduction

if TYPE_CHECKING:
    from yolods.config import DeepSpeedConfig

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


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
