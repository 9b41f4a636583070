"""The sole `deepspeed.initialize`: a plain model and a configuration in, a `ZeroEngine` out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yolods.cluster.ranks import Ranks
from yolods.engine.ema import ShardedEma
from yolods.engine.masters import masters_of
from yolods.engine.optim import OptimizerChoice, build_optimizer, freeze, parameter_groups
from yolods.engine.schedule import Schedule
from yolods.engine.zero import ZeroEngine
from yolods.model.inputs import InputFormat
from yolods.model.layers import exchange_layers
from yolods.model.loss import DetectionLoss
from yolods.stability.clip import clip_by_global_norm

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

    from yolods.config import DeepSpeedConfig, Hyper, RunConfig

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plan_schedule(config: RunConfig, choice: OptimizerChoice, samples: int) -> Schedule:
    """The run's schedule, from the resolved configuration and the size of the train set."""
    hyper, layout = config.hyper, config.deepspeed
    return Schedule(
        samples=samples,
        batch=layout.micro_batch * layout.ranks,
        epochs=config.epochs,
        accumulation=layout.accumulation,
        ramp=layout.accumulation_auto,
        lr0=choice.lr,
        lrf=hyper.lrf,
        cos_lr=hyper.cos_lr,
        momentum=choice.momentum,
        warmup_epochs=hyper.warmup_epochs,
        warmup_momentum=hyper.warmup_momentum,
        warmup_bias_lr=choice.warmup_bias_lr,
    )


def build_engine(
    net: DetectionModel, config: RunConfig, choice: OptimizerChoice, ranks: Ranks, class_weights: Tensor | None = None
) -> ZeroEngine:
    """Wrap a plain fp32 CPU model for training. A collective.

    Args:
        net: is changed: layers are exchanged, parameters cast, partitioned and moved.
        config: the resolved run.
        choice: the optimizer.
        ranks: this process among the others.
        class_weights: (nc,) weights of the class loss, or None.
    """
    import deepspeed

    hyper, layout = config.hyper, config.deepspeed
    frozen = freeze(net, hyper.freeze)
    channels_last = hyper.channels_last is not False
    low_precision = layout.precision != "fp32"
    on_cpu = ranks.device.type == "cpu"
    exchange_layers(
        net,
        low_precision=low_precision,
        sync_bn=hyper.sync_bn and ranks.size > 1,
        pointwise=on_cpu and channels_last and not low_precision and layout.autocast is None,
    )
    net.to(ranks.device)
    # Only images become channels-last: DeepSpeed 0.19.8 broadcasts `parameter.view(uint8)`, which a channels-last
    # weight refuses, and from stage 1 on weights are slices of flat buffers, without a layout. Convolutions follow
    # the images.
    loss = DetectionLoss(net, hyper, class_weights)
    groups = parameter_groups(net, _weight_decay(hyper, layout))
    members = [list(group["params"]) for group in groups]  # DeepSpeed puts its flat partitions in their place
    settings = layout.for_initialize()
    settings.pop("optimizer", None)  # built here in every case, so that DeepSpeed compiles nothing that torch has
    engine, *_ = deepspeed.initialize(
        model=net,
        optimizer=build_optimizer(choice, groups, ranks.device, offload=layout.offload_optimizer),
        config=settings,
        dist_init_required=False,
    )
    if layout.zero_stage == 0 and not low_precision:
        clip_by_global_norm(engine)
    masters = masters_of(engine.optimizer)
    statistics = [buffer for buffer in engine.module.buffers() if buffer.is_floating_point()]
    return ZeroEngine(
        engine,
        loss=loss,
        masters=masters,
        ema=ShardedEma(masters, statistics, decay=hyper.ema_decay, tau=hyper.ema_tau),
        inputs=InputFormat(ranks.device, _DTYPES[layout.precision], channels_last),
        ranks=ranks,
        groups=members,
        frozen=frozen,
    )


def _weight_decay(hyper: Hyper, layout: DeepSpeedConfig) -> float:
    """A number in the JSON as it stands; else ultralytics' decay x batch x accumulation / nbs (engine/trainer.py)."""
    given = layout.raw.get("optimizer", {}).get("params", {}).get("weight_decay", "auto")
    return hyper.weight_decay if given != "auto" else hyper.weight_decay * layout.train_batch / hyper.nbs
