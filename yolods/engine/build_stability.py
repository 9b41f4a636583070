"""Connects a DeepSpeed engine with the code that checks its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolods.compat import leave_norm_and_scale_to_us
from yolods.distributed.world import Ranks, Share
from yolods.stability.controller import Stability, StockStability
from yolods.zero.gradients import gradients_of
from yolods.zero.loss_scale import LossScale, ScaleRules
from yolods.zero.master_weights import Masters, full_shape
from yolods.zero.shards import spans

if TYPE_CHECKING:
    from yolods.config import DeepSpeedConfig
    from yolods.config.deepspeed.fp16 import Fp16Config


def build_stability(
    engine: Any, masters: Masters, ds: DeepSpeedConfig, ranks: Ranks, share: Share
) -> Stability | StockStability:
    """The step checker that the "yolods" block configures. A collective.

    Raises:
        RuntimeError: the adapters do not support this version of DeepSpeed.
    """
    # A pipeline calls autograd itself, and without ZeRO no DeepSpeed optimizer applies a loss scale
    # in `backward`.
    by_hand = ds.pipeline is not None or ds.zero_stage == 0
    if ds.own.overflow.handling == "stock":
        return StockStability(engine, ranks.size, by_hand=by_hand)
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    groups = [
        [(names[id(each)], full_shape(each)) for each in group] for group in masters.members()
    ]
    sizes = [shard.numel() for shard in masters.shards()]
    held = spans(masters.kind, groups, sizes, share.dp_rank, share.dp_size)
    gradients = gradients_of(engine.optimizer, held, masters.owners)
    rules = scale_rules(ds.fp16, ceiling=ds.own.overflow.max_loss_scale)
    scale = LossScale(rules) if "fp16" in (ds.precision, ds.autocast) else None
    # Without fp16 DeepSpeed still reads a scale: 1, which never changes.
    leave_norm_and_scale_to_us(engine, scale or LossScale(ScaleRules(static=1.0)))
    mine = [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    return Stability(
        gradients,
        _over_stages(mine, ranks),
        ds.own,
        max_norm=ds.gradient_clipping,
        scale=scale,
        by_hand=by_hand,
        replica=share.dp_rank,
        world_size=ranks.size,
        device=ranks.device,
    )


def _over_stages(mine: list[str], ranks: Ranks) -> list[str]:
    """All stages' names, each once, in rank order, which is stage order."""
    told = ranks.from_main(ranks.to_main(mine))
    # Replicas of a stage report the same names.
    return list(dict.fromkeys(name for names in told for name in names))


def scale_rules(fp16: Fp16Config, *, ceiling: float) -> ScaleRules:
    """Rules of the loss scale: DeepSpeed's own keys and our ceiling."""
    return ScaleRules(
        initial=2.0**fp16.initial_scale_power,
        window=fp16.loss_scale_window,
        hysteresis=fp16.hysteresis,
        consecutive=fp16.consecutive_hysteresis,
        floor=float(fp16.min_loss_scale),
        ceiling=ceiling,
        static=fp16.loss_scale or None,
    )
