"""What a start says before its first step: on the screen, in the log and to TensorBoard."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from yolods import compat
from yolods.checkpoint.progress import Progress
from yolods.config import RunConfig
from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.data.splits import Split, note_problems
from yolods.distributed.world import Ranks
from yolods.model.blueprint import Blueprint
from yolods.model.freezing import told
from yolods.optim.lr_schedule import Schedule
from yolods.optim.optimizers import OptimizerChoice
from yolods.telemetry import Telemetry, model_table
from yolods.training.provenance import Provenance
from yolods.training.setup.inputs import Inputs
from yolods.training.setup.run_files import config_record


def announce(
    config: RunConfig,
    origin: Provenance,
    ranks: Ranks,
    telemetry: Telemetry,
    inputs: Inputs,
    choice: OptimizerChoice,
    schedule: Schedule,
    progress: Progress,
    about: list[str],
    planned: tuple[int, ...],
) -> None:
    """Log what the run is about to do. Rank 0 only.

    Args:
        planned: bytes of a rank of each stage by the plan, to be drawn; (): not drawn.
    """
    blueprint, splits = inputs.blueprint, (inputs.train, inputs.val)
    notes = [
        *origin.lines(),
        *_setup_lines(config, ranks, blueprint, choice, schedule),
        *note_problems(config.run_dir, tuple(split.scan for split in splits)),
        *config.notes,
        *about,
        *_small_set(schedule, config.deepspeed.dp_size),
        *filter(None, _facts(config, ranks, blueprint, splits[0])),
    ]
    if config.resume:
        epoch = progress.position // schedule.samples + 1
        notes.append(f"Resuming after step {progress.step}, in epoch {epoch}")
    compared = {**_run_settings(config, ranks, schedule), **config.hyper.as_dict()}
    telemetry.start(
        config_record(config, origin), model_table(blueprint.meta), notes, compared, planned
    )
    if not config.resume:
        telemetry.labels(splits[0].scan.labels.boxes())


def drawn_plan(
    device: str, cuts: tuple[int, ...], predict: Callable[[], tuple[int, ...]]
) -> tuple[int, ...]:
    """Bytes of a rank that TensorBoard draws beside its peak; () if none are drawn.

    There are none on a CPU, where a rank's peak is that of its process, with Python and all
    libraries, and none of a pipeline, whose stages have a table of their own.
    """
    return () if device == "cpu" or cuts else predict()


def _small_set(schedule: Schedule, ranks: int) -> list[str]:
    """A line about a train set that is smaller than a batch; ultralytics then shrinks the batch.

    Args:
        ranks: number of data-parallel ranks that share a batch.
    """
    samples, accumulation = schedule.samples, schedule.accumulation
    batch = max(samples - samples % ranks, ranks)
    if samples >= schedule.batch or batch >= schedule.batch:
        return []
    steps = math.ceil(schedule.total_samples / (schedule.batch * accumulation))
    return [
        f"{samples} train images are fewer than a batch of {schedule.batch}, so a batch spans "
        f"epochs, and {schedule.epochs} epochs are about {steps} steps; for ultralytics' number "
        f"use --batch-size {batch} --set nbs={batch * accumulation}"
    ]


def _setup_lines(
    config: RunConfig,
    ranks: Ranks,
    blueprint: Blueprint,
    choice: OptimizerChoice,
    schedule: Schedule,
) -> tuple[str, ...]:
    """Lines about the model, the ranks, the batch and the optimizer."""
    ds = config.deepspeed
    offload = " with offload" if ds.offload_optimizer or ds.offload_param else ""
    grid = f"{ds.pipeline.stages} stages x {ds.dp_size} replicas, " if ds.pipeline else ""
    precision = f"{ds.autocast} autocast" if ds.autocast else ds.precision
    return (
        f"{config.model}: {blueprint.parameters / 1e6:.2f} M parameters, image size {config.imgsz}",
        f"{ranks.size} rank{'s' * (ranks.size > 1)} on {ranks.device.type}, "
        f"{grid}ZeRO-{ds.zero_stage}{offload}, {precision}",
        f"Batch {schedule.batch} = {ds.micro_batch} x {ds.dp_size} "
        f"{'replicas' if ds.pipeline else 'ranks'}; a step accumulates {schedule.accumulation}: "
        f"{schedule.batch * schedule.accumulation} images",
        f"optimizer: {choice.name}, lr {choice.lr:g}, {_beta(choice)} {choice.momentum:g}",
    )


def _beta(choice: OptimizerChoice) -> str:
    return "momentum" if OPTIMIZERS[choice.name].warms_momentum else "beta1"


def _facts(
    config: RunConfig, ranks: Ranks, blueprint: Blueprint, train: Split
) -> tuple[str | None, ...]:
    return (
        _frozen(config, blueprint),
        _without_polygons(config, train),
        _unwatched(config, ranks, os.environ),
    )


def _frozen(config: RunConfig, blueprint: Blueprint) -> str | None:
    return told(config.hyper.freeze, [name for name, _ in blueprint.meta.named_parameters()])


def _unwatched(config: RunConfig, ranks: Ranks, environ: Mapping[str, str]) -> str | None:
    """A warning if nothing would end the ranks on GPUs after one of them is lost."""
    watched = config.deepspeed.own.watchdog.enabled or compat.torch_ends_lost_ranks(environ)
    if watched or ranks.size == 1 or ranks.device.type != "cuda":
        return None
    return (
        'The watchdog is off ("yolods": {"watchdog": {"enabled": false}}): ranks wait forever for '
        "a lost one; with TORCH_NCCL_ASYNC_ERROR_HANDLING=3 torch ends them"
    )


def _without_polygons(config: RunConfig, train: Split) -> str | None:
    if not config.hyper.copy_paste or train.scan.labels.has_polygons:
        return None
    return (
        f"copy_paste {config.hyper.copy_paste:g} has no effect: not every box of the train set has "
        "a polygon"
    )


def _run_settings(config: RunConfig, ranks: Ranks, schedule: Schedule) -> dict[str, Any]:
    """The settings besides hyper-parameters by which TensorBoard's HParams compares runs.

    It sorts columns by their characters and shows the first five. Those that make up the layout
    therefore have capital letters, which come first.
    """
    ds = config.deepspeed
    return {
        "Images per step": schedule.batch * schedule.accumulation,
        "Pipeline stages": ds.pipeline.stages if ds.pipeline else 1,
        "Precision": f"{ds.autocast} autocast" if ds.autocast else ds.precision,
        "Ranks": ranks.size,
        "ZeRO stage": ds.zero_stage,
        "model": config.model,
        "data": str(config.data),
        "imgsz": config.imgsz,
        "epochs": config.epochs,
        "device": ranks.device.type,
        "offload": ds.offload_optimizer or ds.offload_param,
        "micro_batch": ds.micro_batch,
    }
