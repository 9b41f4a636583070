"""The only call of `deepspeed.initialize`: turns a model, or one stage of it, into an engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolods.compat import equal_weights_stay, keep_lone_gradients_apart, skip_own_decoding
from yolods.distributed.mesh import Mesh
from yolods.distributed.world import Ranks, Share
from yolods.engine.base import Parts
from yolods.engine.build_reduction import bucket_of, build_compression, lower_traffic
from yolods.engine.build_stability import build_stability
from yolods.engine.monitor_files import announce_folders
from yolods.engine.pipeline.engine import PipelineEngine, StageBoundaries
from yolods.engine.zero_engine import ZeroEngine
from yolods.model.graph.stage import RecomputedDetector
from yolods.model.initialise import initialises, own_tensors
from yolods.model.inputs import InputFormat
from yolods.model.layers import exchange_layers
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.optim.ema import ShardedEma
from yolods.optim.lr_schedule import Schedule
from yolods.optim.optimizers import OptimizerChoice, build_optimizer, freeze, parameter_groups
from yolods.zero.layers import LayerPartition
from yolods.zero.master_weights import masters_of

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

    from yolods.config import RunConfig
    from yolods.model.blueprint import Blueprint, Values
    from yolods.model.graph.stage import Stage

log = logging.getLogger(__name__)
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


def build_zero(
    blueprint: Blueprint,
    config: RunConfig,
    choice: OptimizerChoice,
    ranks: Ranks,
    class_weights: Tensor | None = None,
) -> tuple[ZeroEngine, str]:
    """The engine of a run under ZeRO, and a line about transferred weights. A collective.

    Under ZeRO-3 no rank holds the whole model, not even for a moment: one layer after the other
    gets memory and values and is divided among the ranks.

    Raises:
        UserError: the file of weights cannot be read, or does not fit.
    """
    weights = None if config.resume else config.weights
    by_name = config.hyper.cls_remap
    if config.deepspeed.zero_stage < 3 or not initialises(blueprint.meta):
        net, note = blueprint.whole(weights, by_name=by_name)
        return build_engine(net, config, choice, ranks, class_weights), note
    values = blueprint.values(weights, by_name=by_name)
    engine = build_engine(blueprint.on_meta(), config, choice, ranks, class_weights, values)
    return engine, values.note


def build_engine(
    net: DetectionModel,
    config: RunConfig,
    choice: OptimizerChoice,
    ranks: Ranks,
    class_weights: Tensor | None = None,
    values: Values | None = None,
) -> ZeroEngine:
    """Wrap a plain fp32 CPU model for training under ZeRO. A collective.

    Args:
        net: changed in place: layers are replaced, parameters cast, partitioned and moved. On the
            meta device if `values` are given.
        config: the resolved run configuration.
        choice: the optimizer.
        ranks: this process among the ranks.
        class_weights: (nc,) weights of the class loss, or None.
        values: what the layers of a model on the meta device are filled with; ZeRO-3 only.
    """
    share = Share(ranks.rank, ranks.size, alone=config.deepspeed.zero_stage < 3)
    loss = DetectionLoss(net.model[-1], ranks.device, config.hyper, class_weights)
    skip_own_decoding(net.model[-1])
    recompute = config.deepspeed.recompute
    module = net if recompute is None else RecomputedDetector(net, recompute.number_checkpoints)
    return ZeroEngine(
        _parts(module, net.model[-1], config, choice, ranks, share, loss, values=values)
    )


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
    values: Values | None = None,
) -> Parts:
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
    if values is not None:
        _fill(module, values, LayerPartition(config.for_initialize()), _DTYPES[ds.precision])
    module.to(ranks.device)
    # Only images become channels-last. DeepSpeed 0.19.8 broadcasts `parameter.view(uint8)`, which
    # fails for a channels-last weight, and from ZeRO 1 on weights are slices of flat buffers, which
    # have no memory format. Convolutions follow the format of the images.
    groups = parameter_groups(module, config.weight_decay)
    optimizer = build_optimizer(choice, groups, ranks.device, offload=ds.offload_optimizer)
    engine = _initialize(module, optimizer, config, ranks, mesh)
    masters = masters_of(engine.optimizer)
    statistics = [buffer for buffer in engine.module.buffers() if buffer.is_floating_point()]
    stability = build_stability(engine, masters, ds, ranks, share)
    return Parts(
        deepspeed=engine,
        loss=loss,
        masters=masters,
        ema=ShardedEma(masters, statistics, decay=hyper.ema_decay, tau=hyper.ema_tau),
        stability=stability,
        compression=build_compression(engine, ds, stability, ranks, share),
        overflow=ds.own.overflow,
        inputs=InputFormat(ranks.device, _DTYPES[ds.precision], channels_last),
        ranks=ranks,
        share=share,
        frozen=frozen,
        shared=shared,
        strides=tuple(head.stride.tolist()),
        reg_max=head.reg_max,
    )


def _initialize(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    ranks: Ranks,
    mesh: Mesh | None,
) -> Any:
    """DeepSpeed's engine, with yolods' own reduction of gradients."""
    import deepspeed

    # Before `initialize`: DeepSpeed's monitors read these variables while they start.
    announce_folders(config.monitor_folders)
    ds = config.deepspeed
    with equal_weights_stay(log.warning):
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=config.for_initialize(bucket_of(ds.reduction, module)),
            mpu=mesh,
            dist_init_required=False,
        )
    keep_lone_gradients_apart(engine)
    lower_traffic(engine, ds, ranks)
    return engine


def _fill(module: nn.Module, values: Values, partition: LayerPartition, dtype: torch.dtype) -> None:
    """Make a model on the meta device real and divide it among the ranks, layer by layer.

    Args:
        dtype: of the parameters in training. Buffers stay in fp32, as DeepSpeed leaves them.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if any(True for _ in own_tensors(layer))
    }
    size = max(sum(each.numel() for each in _own(layer)) for layer in layers.values())
    # All layers use the same memory one after the other. Memory that is freed between the parts
    # that stay would leave gaps, 300 MiB of them in a model of 500 M parameters. It is the host's,
    # because generators of other devices give other numbers.
    room = torch.empty(size)
    cast = room if dtype == room.dtype else torch.empty(size, dtype=dtype)
    for name, layer in layers.items():
        layer.to_empty(device=room.device, recurse=False)
        parameters = _own(layer)
        for parameter, part in _laid_out(room, parameters):
            parameter.data = part
        values.fill(name, layer)
        if cast is not room:
            for parameter, part in _laid_out(cast, parameters):
                parameter.data = part.copy_(parameter.data)
        partition.divide(layer)


def _own(layer: nn.Module) -> list[nn.Parameter]:
    return list(layer.parameters(recurse=False))


def _laid_out(
    room: Tensor, parameters: list[nn.Parameter]
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter with a part of `room` in its shape, one after the other."""
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        yield parameter, room[start:end].view(parameter.shape)
        start = end
