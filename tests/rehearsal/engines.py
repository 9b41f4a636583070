"""Engines of every file in ds_configs/ on pretended devices, with a minimal model."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.small import CONFIGS, MICRO, NAMES, SAMPLES, SIZE, micro_batch
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.engine.build import build_engine
from yolods.engine.build_pipeline import StagePlan, build_stage
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import choose_optimizer
from yolods.plan.cost import cost
from yolods.plan.partition import partition, table
from yolods.stability.record import StepRecord

MODEL = Path(__file__).with_name("detector.yaml")
CUTS = {2: (4,), 4: (2, 4, 8)}
"""First layer of each stage but the first, by number of stages."""
SCALE_POWER = 4
"""fp16's initial loss scale as a power of 2, so low that no step is skipped."""
WARM = 3
"""Steps after which DeepSpeed's timer, fp16's loss scale and the optimizer states are settled."""
RATE, MOMENTUM = 1e-4, 0.9


def stages_of(name: str) -> int:
    """Stages of a pipeline in ds_configs/; 1 for ZeRO."""
    return (
        json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
        .get("pipeline", {})
        .get("stages", 1)
    )


@contextmanager
def engine_of(ranks: Ranks, name: str, folder: Path, **hyper: Any) -> Iterator[Engine]:
    """Build the engine of ds_configs/`name`.json as a run does, and destroy it afterwards."""
    config = _configure(ranks, name, folder, hyper)
    engine = _pipeline(config, ranks) if config.deepspeed.pipeline else _zero(config, ranks)
    engine.training()
    try:
        yield engine
    finally:
        engine.deepspeed.destroy()
        del engine
        gc.collect()


def _configure(ranks: Ranks, name: str, folder: Path, hyper: dict[str, Any]) -> RunConfig:
    settings = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    if "fp16" in settings:
        settings["fp16"]["initial_scale_power"] = SCALE_POWER
    file = folder / f"{name}-{ranks.rank}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    if "offload_optimizer" in settings.get("zero_optimization", {}):
        hyper.setdefault("optimizer", "SGD")  # CPUAdam must be compiled
    batch = MICRO * ranks.size // stages_of(name)
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = [
        "--data",
        "demo",
        "--model",
        str(MODEL),
        "--imgsz",
        str(SIZE),
        "--batch-size",
        str(batch),
    ]
    words += ["--deepspeed_config", str(file), "--set", f"nbs={batch}", "--set", "warmup_epochs=0"]
    words += [word for key, value in hyper.items() for word in ("--set", f"{key}={value}")]
    device = ranks.device.type
    return build_run_config(
        parser.parse_args(words), world_size=ranks.size, device=device, environ={}
    )


def _choice(config: RunConfig) -> Any:
    return choose_optimizer(
        config.hyper, samples=SAMPLES, batch=config.batch_size, epochs=config.epochs, nc=len(NAMES)
    )


def _zero(config: RunConfig, ranks: Ranks) -> Engine:
    torch.manual_seed(config.seed)
    net = build(architecture(parse_name(config.model), len(NAMES), 3), NAMES)
    return build_engine(net, config, _choice(config), ranks)


def _pipeline(config: RunConfig, ranks: Ranks) -> Engine:
    blueprint = Blueprint(architecture(parse_name(config.model), len(NAMES), 3), NAMES, config.seed)
    costs = cost(build_graph(blueprint.meta), SIZE)
    stages = config.deepspeed.pipeline.stages
    found = partition(costs, stages, CUTS[stages])
    plan = StagePlan(costs.graph, found, table(found, costs), measured=False)
    return build_stage(blueprint, plan, config, _choice(config), ranks, None)[0]


def pinned(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch in pinned memory, where there is a device to send it to, or a pretended one."""
    if not torch.cuda.is_available():
        return batch
    return {key: value.pin_memory() for key, value in batch.items()}


def take_step(engine: Engine, number: int, micro_batches: int) -> StepRecord:
    """Take an optimizer step over `micro_batches` new micro-batches of this replica."""
    share = engine.share
    first = 100 * number
    mine = [
        pinned(micro_batch(first + place * share.dp_size + share.dp_rank))
        for place in range(micro_batches)
    ]
    return engine.train_step(Step(first, micro_batches, 0, (RATE,) * 3, MOMENTUM), iter(mine))
