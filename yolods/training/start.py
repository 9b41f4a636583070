"""From a resolved configuration to a run that is ready to train, evaluate or resume."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolods import compat
from yolods.checkpoint.progress import Progress
from yolods.checkpoint.read import Checkpoint
from yolods.checkpoint.store import CheckpointStore
from yolods.config import RunConfig
from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.config.run import CONFIG_FILE
from yolods.config.run_folder import writable
from yolods.data.augment.partner_choice import PartnerChoice, choose_partners
from yolods.data.classes import class_names
from yolods.data.index.fingerprint import samples_of
from yolods.data.sampler import keyed_seed, seed_generators
from yolods.data.source import by_identity
from yolods.data.spec import DataSpec
from yolods.data.splits import (
    Split,
    SplitOptions,
    class_weights,
    most_boxes,
    note_problems,
    open_split,
    read_data,
    unaugmented,
)
from yolods.distributed.store import KeyValueStore
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.engine.build import build_zero, plan_schedule
from yolods.engine.build_pipeline import build_stage, plan_stages
from yolods.engine.build_reduction import compression_lines
from yolods.errors import Faults, UserError
from yolods.evaluation.evaluator import Evaluator
from yolods.model.blueprint import Blueprint
from yolods.model.check import blueprint_of
from yolods.model.freezing import told
from yolods.model.weights import PtFile
from yolods.optim.lr_schedule import Schedule
from yolods.optim.optimizers import OptimizerChoice, choose_optimizer
from yolods.plan.layout import layout_of
from yolods.plan.stage_plan import counted
from yolods.system import streams
from yolods.system.files import replace_text
from yolods.telemetry import NullTelemetry, RunTelemetry, Telemetry, model_table
from yolods.telemetry.sinks.hub import Sinks
from yolods.telemetry.sinks.sink import RunFacts
from yolods.trace.tracing import NoTracing, TracedPlace, Tracing
from yolods.traffic.theory import Need, need_of_stages, need_of_whole
from yolods.training.batches import TrainBatches
from yolods.training.checks.resume_check import (
    RECORD,
    Comparison,
    Depends,
    check_before_start,
    compare,
    depends_on,
    finished,
    is_over,
    read_depends,
)
from yolods.training.final import FinalValidation
from yolods.training.loop import Run
from yolods.training.memory_check import MemoryCheck, MemoryMeter, predicted_ranks
from yolods.training.precise_bn import TrainStatistics
from yolods.training.provenance import Provenance, provenance
from yolods.training.selection import ModelSelection
from yolods.training.weight_files import WeightsWriter, train_args
from yolods.watchdog.watchdog import Watchdog

log = logging.getLogger(__name__)

BYTES_A_PARAMETER = 40
"""Bytes per parameter on disk: masters, two moments and the moving average, all of them a second
time in the snapshot, and the .pt files."""


def start_run(config: RunConfig, ranks: Ranks, kv_store: KeyValueStore, watchdog: Watchdog) -> Run:
    """Build everything that a training run needs. A collective.

    Raises:
        UserError: on every rank: a fault in data, model, weights, disk space or checkpoint.
    """
    config = _share_cores(config, ranks.local_size)
    if config.resume:
        ranks.main_first(lambda: _refuse_changes(config))  # before the slow scan of labels
    hyper = config.hyper
    seed_everything(hyper.seed, deterministic=hyper.deterministic and ranks.device.type == "cuda")
    # The order from here on: cheap checks first, so that a mistake costs seconds and not the time
    # of a scan or of building an engine.
    spec = read_data(config.data, ranks)
    names = class_names(spec, hyper)
    blueprint = blueprint_of(config, names, spec.channels)
    ranks.main_first(lambda: _prepare_folder(config, blueprint.parameters))
    options = _split_options(config, blueprint.grid, ranks)
    train = open_split(spec, "train", hyper, options, ranks, augment=True)
    val = open_split(spec, "val", hyper, options, ranks, augment=False)
    splits = train, val
    choice = _choose(config, samples=len(train.dataset), nc=len(names))
    model = {"architecture": blueprint.layers, "names": names, "train_args": train_args(config)}
    store = _open_store(config, ranks, kv_store, model)
    checkpoint = store.find() if config.resume else None
    footing = ranks.main_first(lambda: _footing(config, blueprint, choice, splits, checkpoint))
    model[RECORD], choice = footing.record, footing.choice
    # After the last check: a folder with this file is a run, and --resume takes the newest one.
    origin = provenance(ranks)
    ranks.main_first(lambda: _write_config(config, origin))
    schedule = plan_schedule(config, choice, len(train.dataset))
    weights = class_weights(train.scan, len(names), hyper.cls_pw)
    meter = MemoryMeter(ranks.device)
    engine, notes, cuts = _make_engine(blueprint, config, choice, ranks, weights)
    progress = Progress(run=config.run)
    if checkpoint is not None:
        # After the engine exists, because `load` copies into its tensors.
        progress = _placed(store.load(engine, checkpoint), footing.comparison, schedule)
        progress = _with_identities(progress, train)
    telemetry = _open_telemetry(config, ranks, names, schedule, progress)
    evaluator = _open_evaluator(config, names, splits, engine, ranks)
    statistics = _open_statistics(config, spec, train, options, engine, ranks)
    # A trace takes a second, and two places ask.
    labels, kind = train.scan.labels, ranks.device.type
    predict = cache(partial(predicted_ranks, config, blueprint, labels, choice.name, cuts, kind))
    if ranks.is_main and not config.only_traced:
        _announce(
            *(config, origin, ranks, telemetry, blueprint, splits, choice, schedule, progress),
            *(footing.partners.lines + notes, _planned(kind, cuts, predict)),
        )
    memory = MemoryCheck(meter, ranks, engine.stage, predict, telemetry)
    batches = TrainBatches(
        *(config, train.dataset, schedule, ranks, engine.share, telemetry),
        stride=blueprint.grid,
        partners=footing.partners.partners,
    )
    writer = WeightsWriter(config, blueprint, telemetry)
    selection = ModelSelection(config, engine, evaluator, writer, telemetry)
    final = FinalValidation(engine, evaluator, statistics, writer, telemetry, plots=hyper.plots)
    return Run(
        *(config, engine, schedule, batches, selection, final, store, telemetry, watchdog, memory),
        progress,
        _open_tracing(config, ranks, engine, telemetry),
    )


def _open_tracing(
    config: RunConfig, ranks: Ranks, engine: Engine, telemetry: Telemetry
) -> NoTracing:
    """What traces the steps that this start is asked to trace."""
    if not config.trace:
        return NoTracing()
    pipeline = config.deepspeed.pipeline
    schedule = None if pipeline is None else pipeline.schedule
    place = TracedPlace(engine.stage, engine.share.dp_rank, schedule)
    tell = streams.show if config.only_traced else partial(telemetry.event, "trace")
    return Tracing(config.trace, config.run_dir, ranks, place, engine.traffic, tell)


def _split_options(config: RunConfig, stride: int, ranks: Ranks) -> SplitOptions:
    """How the run reads images, the same for both splits.

    Args:
        stride: pixels; the sides of images are multiples of it.
    """
    return SplitOptions(
        imgsz=config.imgsz,
        stride=stride,
        epochs=config.epochs,
        workers=config.workers,
        check_data=config.check_data,
        local_ranks=ranks.local_size,
        eval_batch=config.eval_batch,
    )


def _choose(config: RunConfig, *, samples: int, nc: int) -> OptimizerChoice:
    """The optimizer of a new run.

    Args:
        samples: number of train images.
        nc: number of classes.
    """
    optimizer = config.deepspeed.optimizer
    return choose_optimizer(
        config.hyper,
        samples=samples,
        batch=config.batch_size,
        epochs=config.epochs,
        nc=nc,
        given=optimizer.params if optimizer else None,
    )


def _open_store(
    config: RunConfig, ranks: Ranks, kv_store: KeyValueStore, model: dict[str, Any]
) -> CheckpointStore:
    """The store of the run's checkpoints.

    Args:
        model: the content of each model.json. It is read at a save, so the caller may still add to
            it.
    """
    policy = config.deepspeed.own.checkpoint
    return CheckpointStore(
        config.checkpoints,
        ranks,
        keep=policy.keep,
        keep_best=policy.keep_best,
        kv_store=kv_store if policy.asynchronous else None,
        model=model,
        run=config.run,
        start=config.start,
    )


def _open_evaluator(
    config: RunConfig,
    names: tuple[str, ...],
    splits: tuple[Split, Split],
    engine: Engine,
    ranks: Ranks,
) -> Evaluator:
    train, val = splits
    return Evaluator(
        val.dataset,
        names,
        replace(config.hyper, max_det=most_boxes(config.hyper.max_det, train, val)),
        ranks,
        share=engine.share,
        # Twice the micro-batch, as in ultralytics: without gradients it takes less memory.
        forward_batch=2 * config.deepspeed.micro_batch,
        workers=config.workers,
        save_dir=config.run_dir,
    )


def _open_statistics(
    config: RunConfig,
    spec: DataSpec,
    train: Split,
    options: SplitOptions,
    engine: Engine,
    ranks: Ranks,
) -> TrainStatistics | None:
    """The object that recomputes BatchNorm's statistics; None without `precise_bn`."""
    if not config.hyper.precise_bn:
        return None
    images = unaugmented(train, config.hyper.precise_bn, spec, config.hyper, options)
    forward_batch = 2 * config.deepspeed.micro_batch
    return TrainStatistics(
        images, ranks, engine, forward_batch=forward_batch, workers=config.workers
    )


def _refuse_changes(config: RunConfig) -> None:
    faults = Faults()
    check_before_start(config, faults)
    faults.raise_if_any()


@dataclass(frozen=True)
class _Footing:
    """The facts that a run's checkpoints depend on, compared with those of the checkpoint."""

    record: dict[str, Any]
    """The record to store in this run's checkpoints."""
    choice: OptimizerChoice
    """The optimizer; a resumed run keeps the one that it has."""
    partners: PartnerChoice
    """Where mosaic partners come from; a resumed run keeps that as well."""
    comparison: Comparison
    """The differences from the checkpoint's record; none for a new run."""


def _footing(
    config: RunConfig,
    blueprint: Blueprint,
    choice: OptimizerChoice,
    splits: tuple[Split, Split],
    checkpoint: Checkpoint | None,
) -> _Footing:
    """Rank 0: collect what the run depends on and log what has changed since the checkpoint.

    Args:
        choice: the optimizer that a new run would use.

    Raises:
        UserError: one line per change that prevents a resume, or the run is finished.
    """
    train = splits[0]
    partners = choose_partners(config.hyper, train.scan, config.imgsz, train.dataset.channels)
    now = _depends(config, blueprint, choice, partners, splits)
    if checkpoint is None:
        return _Footing(now.record(), choice, partners, Comparison())
    before = read_depends(checkpoint.model)
    comparison = compare(before, now, config.checkpoints.parent, config.data)
    _refuse_resume(config, checkpoint.progress, comparison)
    for line in comparison.notes:
        log.warning("%s", line)
    # `auto` chooses by the number of steps; after a change of epochs or images it could switch the
    # optimizer, whose moments would then be missing.
    if config.hyper.optimizer == "auto" and before.optimizer:
        now, choice = replace(now, optimizer=before.optimizer), OptimizerChoice(**before.optimizer)
    if config.hyper.mosaic_partners == "auto":
        now = replace(now, partners=before.partners)
        partners = PartnerChoice(before.partners, "as the run began")
    return _Footing(now.record(), choice, partners, comparison)


def _depends(
    config: RunConfig,
    blueprint: Blueprint,
    choice: OptimizerChoice,
    partners: PartnerChoice,
    splits: tuple[Split, Split],
) -> Depends:
    """What the checkpoints of this start depend on."""
    train, val = (samples_of(split.scan.labels) for split in splits)
    return depends_on(
        config,
        names=blueprint.names,
        architecture=blueprint.layers,
        optimizer={**asdict(choice), "arguments": dict(choice.arguments)},
        partners=partners.partners,
        train=train,
        val=val,
    )


def _refuse_resume(config: RunConfig, progress: Mapping[str, Any], comparison: Comparison) -> None:
    """Raise UserError if the run is finished or has changed too much."""
    faults = Faults()
    if is_over(config, progress["step"], progress["epochs_done"]) and not config.only_traced:
        faults.add(finished(config))
    for line in comparison.faults:
        faults.add(line)
    faults.raise_if_any()


def _placed(progress: Progress, comparison: Comparison, schedule: Schedule) -> Progress:
    """The position of a resumed run in its train set, whose images may have changed."""
    images, before = schedule.samples, comparison.images_before
    if before is None and not progress.fits(images, schedule.batch * schedule.accumulation):
        log.warning("the number of train images has changed: the current epoch starts over")
        progress = progress.among(images, None)
    elif before not in (None, images):
        progress = progress.among(images, before)
    if comparison.judged_on_others:
        progress = replace(progress, best_fitness=None, best_epoch=progress.epochs_done)
    return progress


def _with_identities(progress: Progress, train: Split) -> Progress:
    """The progress with image faults by identity; old checkpoints have them by path."""
    data = train.dataset
    faults = by_identity(dict(progress.image_faults), data.im_files, data.source)
    return replace(progress, image_faults=tuple(sorted(faults.items())))


def _make_engine(
    blueprint: Blueprint,
    config: RunConfig,
    choice: OptimizerChoice,
    ranks: Ranks,
    class_weights: Tensor | None,
) -> tuple[Engine, list[str], tuple[int, ...]]:
    """The engine that the JSON configures, lines about it for the log, and a pipeline's cuts."""
    if config.deepspeed.pipeline is not None:
        plan = plan_stages(blueprint, config, ranks)
        engine, note = build_stage(blueprint, plan, config, choice, ranks, class_weights)
        cuts = tuple(plan.partition.bounds[1:-1])
        engine.traffic.need = _need(blueprint, config, ranks, cuts)
        return engine, [*plan.lines, *([note] if note else [])], cuts
    weights = None if config.resume else config.weights
    if weights is not None:
        # Rank 0 reads the file first, so that a damaged one is reported once.
        ranks.main_first(lambda: PtFile(weights) and None)
    engine, note = build_zero(blueprint, config, choice, ranks, class_weights)
    engine.traffic.need = _need(blueprint, config, ranks)
    about = [str(engine.net)] if config.deepspeed.recompute else []
    about += compression_lines(engine.compression, config.deepspeed)
    return engine, [*about, *([note] if note else [])], ()


def _need(
    blueprint: Blueprint, config: RunConfig, ranks: Ranks, cuts: Sequence[int] = ()
) -> Need | None:
    """What theory asks a rank to send per step; None where nobody shows it.

    Args:
        cuts: index of the first node of every stage except the first.
    """
    if ranks.size == 1 or not ranks.is_main:
        return None
    layout, frozen = layout_of(config, tuple(cuts)), config.hyper.freeze
    if not cuts:
        compressed = config.deepspeed.own.compression.kind != "none"
        return need_of_whole(blueprint.meta, layout, frozen, compressed=compressed)
    return need_of_stages(counted(blueprint, config), layout, frozen)


def _share_cores(config: RunConfig, local_ranks: int) -> RunConfig:
    """Limit the loader processes to a rank's share of the cores, and note it for the log."""
    share = max(cores() // local_ranks, 1)
    if config.workers <= share:
        return config
    note = (
        f"--workers {config.workers}: a rank starts {share}, its share of this host's cores "
        f"({cores()} / {local_ranks})"
    )
    # The configuration of a resumed run already contains such a line.
    notes = tuple(one for one in config.notes if not one.startswith("--workers "))
    return replace(config, workers=share, notes=(*notes, note))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed every generator identically on all ranks, so that weights start equal.

    Samples have seeds of their own and do not depend on this.
    """
    seed_generators("run", seed)
    # torch keeps this seed until a GPU is first used, and ignores it without one.
    torch.cuda.manual_seed_all(keyed_seed("cuda", seed) >> 1)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True


def _prepare_folder(config: RunConfig, parameters: int) -> None:
    """Create the run folder, and check that its disk has room for what the run writes."""
    with writable(config.run_dir):
        if config.only_traced:
            config.run_dir.mkdir(exist_ok=True)
            return
        (config.run_dir / "weights").mkdir(parents=True, exist_ok=True)
        policy = config.deepspeed.own.checkpoint
        each = BYTES_A_PARAMETER
        if config.deepspeed.own.compression.kind != "none":
            # What every rank has not sent yet of its gradients, and a second time in the snapshot.
            each += 8 * config.deepspeed.dp_size
        _check_space(config.run_dir, parameters, policy.keep + policy.keep_best, each)


def _write_config(config: RunConfig, origin: Provenance) -> None:
    """Write config.json: everything that determines the run, and the versions and devices."""
    if config.only_traced:  # the run keeps its own
        return
    with writable(config.run_dir):
        replace_text(config.run_dir / CONFIG_FILE, json.dumps(_as_dict(config, origin), indent=2))


def _check_space(folder: Path, parameters: int, keep: int, each: int = BYTES_A_PARAMETER) -> None:
    # One more than is kept: a new checkpoint is complete before an old one is removed.
    needed = parameters * each * (keep + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**30:.2f} GiB are free, but {keep + 1} checkpoints of "
            f"{parameters / 1e6:.1f} M parameters x {each} bytes need "
            f"{needed / 2**30:.2f} GiB; free some space, or choose another --project"
        )


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


def _open_telemetry(
    config: RunConfig, ranks: Ranks, names: tuple[str, ...], schedule: Schedule, progress: Progress
) -> Telemetry:
    if not ranks.is_main or config.only_traced:
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
        epoch_ends=dict(progress.epoch_ends),
        plots=hyper.plots,
        sinks=Sinks(config.loggers, RunFacts(config.run, config.start, config.run_dir)),
    )


def _announce(
    config: RunConfig,
    origin: Provenance,
    ranks: Ranks,
    telemetry: Telemetry,
    blueprint: Blueprint,
    splits: tuple[Split, Split],
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
    telemetry.start(_as_dict(config, origin), model_table(blueprint.meta), notes, compared, planned)
    if not config.resume:
        telemetry.labels(splits[0].scan.labels.boxes())


def _planned(
    device: str, cuts: tuple[int, ...], predict: Callable[[], tuple[int, ...]]
) -> tuple[int, ...]:
    """Bytes of a rank that TensorBoard draws beside its peak; () if none are drawn.

    There are none on a CPU, where a rank's peak is that of its process, with Python and all
    libraries, and none of a pipeline, whose stages have a table of their own.
    """
    return () if device == "cpu" or cuts else predict()


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


def _frozen(config: RunConfig, blueprint: Blueprint) -> str | None:
    return told(config.hyper.freeze, [name for name, _ in blueprint.meta.named_parameters()])


def _facts(
    config: RunConfig, ranks: Ranks, blueprint: Blueprint, train: Split
) -> tuple[str | None, ...]:
    return (
        _frozen(config, blueprint),
        _without_polygons(config, train),
        _unwatched(config, ranks, os.environ),
    )


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


def _as_dict(config: RunConfig, origin: Provenance) -> dict[str, Any]:
    return {**json.loads(config.to_json()), "provenance": origin.as_dict()}


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
