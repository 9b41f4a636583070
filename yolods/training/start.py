"""From a resolved configuration to a run that is ready to train, evaluate or resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor

from yolods.checkpoint.progress import Progress
from yolods.checkpoint.store import CheckpointStore
from yolods.config import RunConfig
from yolods.data.splits import class_weights, most_boxes, unaugmented
from yolods.distributed.store import KeyValueStore
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.engine.build import build_zero, plan_schedule
from yolods.engine.build_pipeline import build_stage, plan_stages
from yolods.engine.build_reduction import compression_lines
from yolods.evaluation.evaluator import Evaluator
from yolods.model.blueprint import Blueprint
from yolods.optim.lr_schedule import Schedule
from yolods.optim.optimizers import OptimizerChoice, choose_optimizer
from yolods.plan.layout import layout_of
from yolods.plan.stage_plan import counted
from yolods.system import streams
from yolods.telemetry import NullTelemetry, RunTelemetry, Telemetry
from yolods.telemetry.sinks.hub import Sinks
from yolods.telemetry.sinks.sink import RunFacts
from yolods.trace.tracing import NoTracing, TracedPlace, Tracing
from yolods.traffic.theory import Need, need_of_stages, need_of_whole
from yolods.training.batches import TrainBatches
from yolods.training.checks.resume_check import RECORD
from yolods.training.final import FinalValidation
from yolods.training.loop import Run
from yolods.training.memory_check import MemoryCheck, MemoryMeter, predicted_ranks
from yolods.training.precise_bn import TrainStatistics
from yolods.training.provenance import provenance
from yolods.training.selection import ModelSelection
from yolods.training.setup.announcement import announce, drawn_plan
from yolods.training.setup.footing import find_footing, placed, refuse_changes, with_identities
from yolods.training.setup.inputs import Inputs, open_inputs
from yolods.training.setup.loader_workers import limit_workers
from yolods.training.setup.run_files import write_config
from yolods.training.setup.seeding import seed_everything
from yolods.training.weight_files import WeightsWriter, train_args
from yolods.watchdog.watchdog import Watchdog


def start_run(config: RunConfig, ranks: Ranks, kv_store: KeyValueStore, watchdog: Watchdog) -> Run:
    """Build everything that a training run needs. A collective.

    Raises:
        UserError: on every rank: a fault in data, model, weights, disk space or checkpoint.
    """
    config = limit_workers(config, ranks.local_size)
    if config.resume:
        ranks.main_first(lambda: refuse_changes(config))  # before the slow scan of labels
    hyper = config.hyper
    seed_everything(hyper.seed, deterministic=hyper.deterministic and ranks.device.type == "cuda")
    inputs = open_inputs(config, ranks)
    blueprint, train = inputs.blueprint, inputs.train
    weights = class_weights(train.scan, len(blueprint.names), hyper.cls_pw)
    choice = _choose(config, samples=len(train.dataset), nc=len(blueprint.names))
    model = {
        "architecture": blueprint.layers,
        "names": blueprint.names,
        "train_args": train_args(config),
    }
    store = _open_store(config, ranks, kv_store, model)
    checkpoint = store.find() if config.resume else None
    footing = ranks.main_first(lambda: find_footing(config, inputs, choice, checkpoint))
    model[RECORD], choice = footing.record, footing.choice
    # After the last check: a folder with this file is a run, and --resume takes the newest one.
    origin = provenance(ranks)
    ranks.main_first(lambda: write_config(config, origin))
    schedule = plan_schedule(config, choice, len(train.dataset))
    meter = MemoryMeter(ranks.device)
    engine, notes, cuts = _make_engine(blueprint, config, choice, ranks, weights)
    progress = Progress(run=config.run)
    if checkpoint is not None:
        # After the engine exists, because `load` copies into its tensors.
        progress = placed(store.load(engine, checkpoint), footing.comparison, schedule)
        progress = with_identities(progress, train)
    telemetry = _open_telemetry(config, ranks, blueprint.names, schedule, progress)
    # A trace takes a second, and two places ask.
    labels, kind = train.scan.labels, ranks.device.type
    predict = cache(partial(predicted_ranks, config, blueprint, labels, choice.name, cuts, kind))
    if ranks.is_main and not config.only_traced:
        announce(
            *(config, origin, ranks, telemetry, inputs, choice, schedule, progress),
            *(footing.partners.lines + notes, drawn_plan(kind, cuts, predict)),
        )
    batches = TrainBatches(
        *(config, train.dataset, schedule, ranks, engine.share, telemetry),
        stride=blueprint.grid,
        partners=footing.partners.partners,
    )
    return Run(
        *(config, engine, schedule, batches),
        *_open_validation(config, inputs, engine, ranks, telemetry),
        *(store, telemetry, watchdog, MemoryCheck(meter, ranks, engine.stage, predict, telemetry)),
        progress,
        _open_tracing(config, ranks, engine, telemetry),
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


def _open_validation(
    config: RunConfig, inputs: Inputs, engine: Engine, ranks: Ranks, telemetry: Telemetry
) -> tuple[ModelSelection, FinalValidation]:
    """What evaluates every epoch and writes its weights, and what evaluates the best of them."""
    evaluator = _open_evaluator(config, inputs, engine, ranks)
    writer = WeightsWriter(config, inputs.blueprint, telemetry)
    statistics, plots = _open_statistics(config, inputs, engine, ranks), config.hyper.plots
    return (
        ModelSelection(config, engine, evaluator, writer, telemetry),
        FinalValidation(engine, evaluator, statistics, writer, telemetry, plots=plots),
    )


def _open_evaluator(config: RunConfig, inputs: Inputs, engine: Engine, ranks: Ranks) -> Evaluator:
    train, val = inputs.train, inputs.val
    return Evaluator(
        val.dataset,
        inputs.blueprint.names,
        replace(config.hyper, max_det=most_boxes(config.hyper.max_det, train, val)),
        ranks,
        share=engine.share,
        # Twice the micro-batch, as in ultralytics: without gradients a pass takes less memory.
        forward_batch=2 * config.deepspeed.micro_batch,
        workers=config.workers,
        save_dir=config.run_dir,
    )


def _open_statistics(
    config: RunConfig, inputs: Inputs, engine: Engine, ranks: Ranks
) -> TrainStatistics | None:
    """The object that recomputes BatchNorm's statistics; None without `precise_bn`."""
    if not config.hyper.precise_bn:
        return None
    hyper = config.hyper
    images = unaugmented(inputs.train, hyper.precise_bn, inputs.spec, hyper, inputs.options)
    forward_batch = 2 * config.deepspeed.micro_batch
    return TrainStatistics(
        images, ranks, engine, forward_batch=forward_batch, workers=config.workers
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
