"""From a resolved configuration to a run that is ready to train, evaluate or resume."""

from __future__ import annotations

import logging
import os
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.cluster.ranks import Ranks
from yolods.config import RunConfig
from yolods.config.run import CONFIG_FILE
from yolods.data.splits import Opening, Split, class_names, class_weights, note_problems, open_split, read_data
from yolods.engine.build import build_engine, plan_schedule
from yolods.engine.optim import OptimizerChoice, choose_optimizer
from yolods.engine.schedule import Schedule
from yolods.errors import UserError
from yolods.evaluate import Evaluator
from yolods.model.build import architecture, build, parse_name
from yolods.model.weights import plain_copy, read_pt, transfer
from yolods.telemetry import NullTelemetry, RunTelemetry, Telemetry, model_table
from yolods.train import Run, layout_of, train_args

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

log = logging.getLogger(__name__)

BYTES_A_PARAMETER = 24
"""On disk: weights, masters, two moments and the moving average, with room for fp16 copies in .pt files."""


@dataclass(frozen=True)
class _Model:
    """A model before it is wrapped, with what is said about it."""

    architecture: dict
    net: DetectionModel
    skeleton: DetectionModel
    table: str
    note: str

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.skeleton.parameters())


def start_run(config: RunConfig, ranks: Ranks) -> Run:
    """Build everything that a training run needs. A collective.

    Raises:
        UserError: on every rank: data, model, weights, disk space or checkpoint are not as they have to be.
    """
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    config = replace(config, workers=min(config.workers, max(cores() // local_ranks, 1)))
    hyper = config.hyper
    seed_everything(hyper.seed, deterministic=hyper.deterministic and ranks.device.type == "cuda")
    spec = read_data(config.data, ranks)
    names = class_names(spec, hyper)
    model = _build_model(config, names, spec.channels, ranks)
    opening = Opening(
        imgsz=config.imgsz,
        stride=_stride(model.skeleton, config.imgsz),
        epochs=config.epochs,
        workers=config.workers,
        local_ranks=local_ranks,
    )
    ranks.main_first(lambda: _prepare_folder(config, model.parameters))
    train = open_split(spec, "train", hyper, opening, ranks, augment=True)
    val = open_split(spec, "val", hyper, opening, ranks, augment=False)
    choice = choose_optimizer(
        hyper,
        samples=len(train.dataset),
        batch=config.batch_size,
        epochs=config.epochs,
        nc=len(names),
        given=config.deepspeed.optimizer.params if config.deepspeed.optimizer else None,
    )
    schedule = plan_schedule(config, choice, len(train.dataset))
    weights = class_weights(train.scan, len(names), hyper.cls_pw)
    engine = build_engine(model.net, config, choice, ranks, weights)
    store = CheckpointStore(
        config.run_dir / "checkpoints",
        ranks,
        keep=config.deepspeed.own.checkpoint.keep,
        layout=layout_of(config),
        model={"architecture": model.architecture, "names": names, "train_args": train_args(config)},
    )
    progress = store.load(engine) if config.resume else Progress()
    if progress.position >= schedule.total_samples:
        raise UserError(
            f"--resume: {config.run_dir} has finished its {config.epochs} epochs; give more by --epochs to go on"
        )
    telemetry = _open_telemetry(config, ranks, names, schedule, progress)
    evaluator = Evaluator(
        val.dataset,
        names,
        replace(hyper, max_det=_most_boxes(hyper.max_det, train, val)),
        ranks,
        forward_batch=2 * config.deepspeed.micro_batch,
        workers=config.workers,
        save_dir=config.run_dir,
    )
    _announce(config, ranks, telemetry, model, (train, val), choice, schedule, progress)
    return Run(config, ranks, engine, schedule, train, evaluator, store, model.skeleton, telemetry, progress)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed every generator alike on all ranks: weights start equal, and samples carry seeds of their own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True


def _build_model(config: RunConfig, names: tuple[str, ...], channels: int, ranks: Ranks) -> _Model:
    name = parse_name(config.model)
    layers = architecture(name, len(names), channels)
    net = build(layers, names)
    note = ""
    if config.weights is not None and not config.resume:
        weights = config.weights
        source = ranks.main_first(lambda: read_pt(weights) and None) or read_pt(weights)
        if not config.hyper.cls_remap:
            source.names = {}
        taken, total = transfer(net, source)
        note = f"Transferred {taken}/{total} tensors from {weights}"
    return _Model(layers, net, plain_copy(net), model_table(net), note)


def _stride(net: DetectionModel, imgsz: int) -> int:
    stride = max(int(max(net.stride)), 32)
    if imgsz % stride:
        below = max(imgsz // stride, 1) * stride
        raise UserError(f"--imgsz {imgsz}: this model needs a multiple of {stride}; use {below} or {below + stride}")
    return stride


def _prepare_folder(config: RunConfig, parameters: int) -> None:
    """Make the run folder, see that it can hold what the run will write, and note the configuration."""
    folder = config.run_dir
    try:
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        _check_space(folder, parameters, config.deepspeed.own.checkpoint.keep)
        (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; choose another place by --project"
        ) from None


def _check_space(folder: Path, parameters: int, keep: int) -> None:
    needed = parameters * BYTES_A_PARAMETER * (keep + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**30:.2f} GiB are free, but {keep + 1} checkpoints of {parameters / 1e6:.1f} M "
            f"parameters x {BYTES_A_PARAMETER} bytes take {needed / 2**30:.2f} GiB; free some, or choose another --project"
        )


def _most_boxes(limit: int, *splits: Split) -> int:
    """ultralytics raises its default limit of 300 boxes an image to what the data holds; a limit given stays."""
    if limit != 300:
        return limit
    return max(limit, *(len(label["cls"]) for split in splits for label in split.scan.labels))


def _open_telemetry(
    config: RunConfig, ranks: Ranks, names: tuple[str, ...], schedule: Schedule, progress: Progress
) -> Telemetry:
    if not ranks.is_main:
        return NullTelemetry()
    hyper = config.hyper
    closing = (config.epochs - hyper.close_mosaic) * schedule.samples // schedule.batch
    return RunTelemetry(
        config.run_dir,
        names=dict(enumerate(names)),
        epochs=config.epochs,
        images_per_epoch=schedule.samples,
        batch_size=schedule.batch,
        steps_per_epoch=max(schedule.samples // (schedule.batch * schedule.accumulation), 1),
        close_mosaic_batch=closing if hyper.close_mosaic and closing > 0 else None,
        start_epoch=progress.epochs_done,
        start_step=progress.step,
        plots=hyper.plots,
    )


def _announce(
    config: RunConfig,
    ranks: Ranks,
    telemetry: Telemetry,
    model: _Model,
    splits: tuple[Split, Split],
    choice: OptimizerChoice,
    schedule: Schedule,
    progress: Progress,
) -> None:
    """Say what is about to happen; on rank 0 only, though any rank may call it."""
    if not ranks.is_main:
        return
    layout = config.deepspeed
    offload = " with offload" if layout.offload_optimizer or layout.offload_param else ""
    precision = f"{layout.autocast} autocast" if layout.autocast else layout.precision
    notes = [
        f"{config.model}: {model.parameters / 1e6:.2f} M parameters, image size {config.imgsz}",
        f"{ranks.size} rank{'s' * (ranks.size > 1)} on {ranks.device.type}, ZeRO-{layout.zero_stage}{offload}, "
        f"{precision}",
        f"Batch {schedule.batch} = {layout.micro_batch} x {ranks.size} ranks; "
        f"a step accumulates {schedule.accumulation}: {layout.train_batch} images",
        f"optimizer: {choice.name}, lr {choice.lr:g}, momentum {choice.momentum:g}",
        *note_problems(config.run_dir, tuple(split.scan for split in splits)),
        *config.notes,
    ]
    notes += [model.note] if model.note else []
    if config.resume:
        notes.append(f"Resuming after step {progress.step}, in epoch {progress.position // schedule.samples + 1}")
    telemetry.start(_as_dict(config), model.table, notes, config.hyper.as_dict())
    if not config.resume:
        telemetry.labels(splits[0].scan.labels)


def _as_dict(config: RunConfig) -> dict:
    import json

    return json.loads(config.to_json())
