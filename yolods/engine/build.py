"""The only call of `deepspeed.initialize`: turns a model, or one stage of it, into an engine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from yolods.compat import keep_lone_gradients_apart, skip_own_decoding
from yolods.distributed.mesh import Mesh
from yolods.distributed.world import Ranks, Share
from yolods.engine.base import Parts
from yolods.engine.build_stability import build_stability
from yolods.engine.monitor_files import announce_folders
from yolods.engine.pipeline.engine import PipelineEngine, StageBoundaries
from yolods.engine.zero_engine import ZeroEngine
from yolods.model.graph.stage import RecomputedDetector
from yolods.model.inputs import InputFormat
from yolods.model.layers import exchange_layers
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.optim.ema import ShardedEma
from yolods.optim.lr_schedule import Schedule
from yolods.optim.optimizers import OptimizerChoice, build_optimizer, freeze, parameter_groups
from yolods.zero.master_weights import masters_of

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

    from yolods.config import RunConfig
    from yolods.model.graph.stage import Stage

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plan_schedule(config: RunConfig, choice: OptimizerChoice, samples: int) -> Schedule:
    """The run's schedule for a train set of `samples` images."""
    hyper, ds = config.hyper, config.deepspeed
    accumulation = ds.accumulation
    if ds.accumulation_auto:
        # Like ultralytics, after the weight decay was scaled: an accumulation longer than the run
        # would never complete a step.
        accumulation = min(accumulation, math.ceil(samples * config.epochs / ds.batches.batch))
    return Schedule(
        samples=samples,
        batch=ds.micro_batch * ds.dp_size,
        epochs=config.epochs,
        accumulation=accumulation,
        ramp=ds.accumulation_auto,
        lr0=choice.lr,
        lrf=hyper.lrf,
        cos_lr=hyper.cos_lr,
        momentum=choice.momentum,
        warmup_epochs=hyper.warmup_epochs,
        warmup_momentum=hyper.warmup_momentum,
        warmup_bias_lr=choice.warmup_bias_lr,
    )


def build_engine(
    net: DetectionModel,
    config: RunConfig,
    choice: OptimizerChoice,
    ranks: Ranks,
    class_weights: Tensor | None = None,
) -> ZeroEngine:
    """Wrap a plain fp32 CPU model for training under ZeRO. A collective.

    Args:
        net: changed in place: layers are replaced, parameters cast, partitioned and moved.
        config: the resolved run configuration.
        choice: the optimizer.
        ranks: this process among the ranks.
        class_weights: (nc,) weights of the class loss, or None.
    """
    share = Share(ranks.rank, ranks.size, alone=config.deepspeed.zero_stage < 3)
    loss = DetectionLoss(net.model[-1], ranks.device, config.hyper, class_weights)
    skip_own_decoding(net.model[-1])
    recompute = config.deepspeed.recompute
    module = net if recompute is None else RecomputedDetector(net, recompute.number_checkpoints)
    return ZeroEngine(_parts(module, net.model[-1], config, choice, ranks, share, loss))


def build_pipeline(
    stage: Stage,
    head: nn.Module,
    cut: StageBoundaries,
    config: RunConfig,
    choice: OptimizerChoice,
    mesh: Mesh,
    class_weights: Tensor | None = None,
) -> PipelineEngine:
    """Wrap this rank's stage for training. A collective.

    Args:
        stage: fp32 on the CPU; changed in place, as `build_engine` changes a model.
        head: the model's Detect layer, for strides, class count and reg_max; may be on the meta
            device.
        cut: the values that cross this stage's boundaries.
        mesh: this rank's position.
    """
    ranks = mesh.ranks
    loss = DetectionLoss(head, ranks.device, config.hyper, class_weights) if mesh.last else None
    parts = _parts(stage, head, config, choice, ranks, _share_of(mesh), loss, mesh)
    ds = config.deepspeed
    assert ds.pipeline is not None
    autocast = None if ds.autocast is None else _DTYPES[ds.autocast]
    return PipelineEngine(parts, mesh, cut, autocast, ds.pipeline.schedule)


def _share_of(mesh: Mesh) -> Share:
    """This rank's share of the data in a pipeline."""
    return Share(
        mesh.replica,
        mesh.replicas,
        first_stage=mesh.first,
        last_stage=mesh.last,
        alone=mesh.stages == 1,
        group=mesh.data_group,
    )


def _parts(
    module: nn.Module,
    head: nn.Module,
    config: RunConfig,
    choice: OptimizerChoice,
    ranks: Ranks,
    share: Share,
    loss: DetectionLoss | None,
    mesh: Mesh | None = None,
) -> Parts:
    import deepspeed

    hyper, ds = config.hyper, config.deepspeed
    frozen = freeze(module, hyper.freeze)
    channels_last = hyper.channels_last is not False
    low_precision = ds.precision != "fp32"
    shared = hyper.sync_bn and share.dp_size > 1
    exchange_layers(
        module,
        low_precision=low_precision,
        sync_bn=shared,
        pointwise=ranks.device.type == "cpu"
        and channels_last
        and not low_precision
        and ds.autocast is None,
        group=share.group,
    )
    module.to(ranks.device)
    # Only images become channels-last. DeepSpeed 0.19.8 broadcasts `parameter.view(uint8)`, which
    # fails for a channels-last weight, and from ZeRO 1 on weights are slices of flat buffers, which
    # have no memory format. Convolutions follow the format of the images.
    groups = parameter_groups(module, config.weight_decay)
    # Before `initialize`: DeepSpeed's monitors read these variables while they start.
    announce_folders(config.monitor_folders)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=build_optimizer(choice, groups, ranks.device, offload=ds.offload_optimizer),
        config=config.for_initialize(),
        mpu=mesh,
        dist_init_required=False,
    )
    keep_lone_gradients_apart(engine)
    masters = masters_of(engine.optimizer)
    statistics = [buffer for buffer in engine.module.buffers() if buffer.is_floating_point()]
    return Parts(
        deepspeed=engine,
        loss=loss,
        masters=masters,
        ema=ShardedEma(masters, statistics, decay=hyper.ema_decay, tau=hyper.ema_tau),
        stability=build_stability(engine, masters, ds, ranks, share),
        overflow=ds.own.overflow,
        inputs=InputFormat(ranks.device, _DTYPES[ds.precision], channels_last),
        ranks=ranks,
        share=share,
        frozen=frozen,
        shared=shared,
        strides=tuple(head.stride.tolist()),
        reg_max=head.reg_max,
    )
