"""One optimizer step of a split model, through the engine that a run builds, beside the whole
model's (whole.py).

split_engine(..)   this rank's stage of a `Case` (splits.py)
split_step(..)     on every rank of a mesh: how far its own stage is from the plain model
faults_of(..)      what all ranks' reports show to be wrong
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tests.parity.small import NAMES, SIZE, distance, floating_buffers, plain_model
from tests.parity.splits import Case, batch_of
from tests.parity.whole import Report, names_of, plain_step
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.distributed.world import Ranks
from yolods.engine.build_pipeline import build_stage
from yolods.engine.pipeline.engine import PipelineEngine
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import choose_optimizer
from yolods.plan.cost import Cost, cost
from yolods.plan.partition import partition, table
from yolods.plan.stage_plan import StagePlan

RATE, MOMENTUM, MAX_NORM = 100.0, 0.9, 10.0
"""A step so large that the weights' own rounding vanishes beside it; the next one starts from the
old weights again."""
SHAPES = ((2, 3, 64, 64), (1, 3, 96, 64), (5, 3, 64, 128), (2, 3, 64, 64))
"""Of batches that are evaluated."""

LIMITS = (1e-5, 1e-4)
"""Largest distance of losses and statistics, and of gradients."""
ROUNDED_LIMITS = (1e-3, 1e-2)
"""Where one rounding more or less is 4e-3 of a number, as in bf16."""


@contextmanager
def split_engine(ranks: Ranks, case: Case, folder: Path) -> Iterator[PipelineEngine]:
    """This rank's stage as a run builds it; taken down again after."""
    ranks = replace(ranks, local_size=case.slots or ranks.size)
    config = _configure(case, folder / f"ds-{ranks.rank}.json")
    blueprint, costs = _drawn(case.model, case.sizes[0])
    found = partition(costs, case.stages, case.cuts)
    plan = StagePlan(costs.graph, found, table(found, costs), measured=False)
    choice = choose_optimizer(
        config.hyper, samples=1000, batch=config.batch_size, epochs=config.epochs, nc=len(NAMES)
    )
    engine, _ = build_stage(blueprint, plan, config, choice, ranks, None)
    engine.training()
    try:
        yield engine
    finally:
        engine.deepspeed.destroy()
        del engine
        gc.collect()


def draw() -> None:
    """Work out what splits of the small model start from, for all ranks that are forked after."""
    _drawn(Case(cuts=()).model, SIZE)


@lru_cache
def _drawn(model: str, size: int) -> tuple[Blueprint, Cost]:
    """What every split of a model starts from: to work it out for each would take longer than the
    step."""
    blueprint = Blueprint(architecture(parse_name(model), len(NAMES), 3), NAMES, seed=0)
    return blueprint, cost(build_graph(blueprint.meta), size)


def _configure(case: Case, file: Path) -> RunConfig:
    file.write_text(case.as_json(), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = [
        "--data",
        "demo",
        "--model",
        case.model,
        "--imgsz",
        str(case.sizes[0]),
        "--epochs",
        "10",
    ]
    words += ["--deepspeed_config", str(file), "--set", f"optimizer={case.optimizer}"]
    words += [
        "--set",
        f"channels_last={str(case.channels_last).lower()}",
        "--set",
        "weight_decay=0",
    ]
    words += ["--set", f"sync_bn={str(case.sync_bn).lower()}"]
    words += [] if case.freeze is None else ["--freeze", str(case.freeze)]
    # A CPU has no fp16 for users; for tests it is only slow.
    device = "cuda" if case.precision == "fp16" else "cpu"
    return build_run_config(
        parser.parse_args(words), world_size=case.ranks, device=device, environ={}
    )


def split_step(ranks: Ranks, case: Case, weights: dict[str, Tensor], folder: Path) -> list[Report]:
    """Take the case's steps; how far this rank's stage is from the plain model in each."""
    with split_engine(ranks, case, folder) as engine:
        return [_one_step(engine, case, size, weights) for size in case.sizes]


def split_prediction(
    ranks: Ranks, case: Case, weights: dict[str, Tensor], folder: Path
) -> tuple[list[float], Report]:
    """Evaluate images of several shapes: how far boxes and scores are from the plain model's, where
    they are judged.

    And the report of a training step after that, which has to find the stages as they were.
    """
    net, apart = plain_model(weights, case.model).eval(), []
    with split_engine(ranks, case, folder) as engine:
        engine.adopt(weights)
        engine.deepspeed.eval()
        for number, shape in enumerate(SHAPES):
            images = torch.randint(
                0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
            )
            found = engine.predict(images if engine.mesh.first else None)
            assert (found is not None) == engine.mesh.last
            if found is not None:
                with torch.no_grad():
                    apart.append(distance(found[0], net(images.float() / 255)[0]))
        engine.training()
        return apart, _one_step(engine, case, case.sizes[0], weights)


def _one_step(engine: PipelineEngine, case: Case, size: int, weights: dict[str, Tensor]) -> Report:
    engine.adopt(weights)
    step = Step(0, case.micro_batches, 0, (RATE, RATE, RATE), MOMENTUM)
    mine = [batch_of(case, place, engine.mesh.replica) for place in range(case.micro_batches)]
    with kept_gradients(engine, case.scale) as gradients:
        result = engine.train_step(step, iter(mine), size if len(case.sizes) > 1 else None)
    plain = plain_step(case, size, weights)
    trained = [pair for pair in engine.net.named_parameters() if pair[1].requires_grad]
    after = {name: engine.masters.whole(each, keep=True) for name, each in trained}
    # Nesterov's first step; only the first is compared, and no other optimizer's.
    clipped = (1 + MOMENTUM) * RATE * min(1.0, MAX_NORM / plain["norm"])
    statistics = floating_buffers(engine.net)
    counts = {
        int(value)
        for name, value in engine.net.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    return {
        "loss": distance(torch.tensor(list(result.loss.values())), plain["items"]),
        "norm": (result.grad_norm, plain["norm"]),
        "instances": (result.instances, plain["instances"]),
        "gradients": {
            name: distance(value, plain["gradients"][name]) for name, value in gradients.items()
        },
        "moved": {
            name: _step_apart(after[name], weights[name], -clipped * plain["gradients"][name])
            for name in gradients
        },
        "statistics": {
            name: distance(value, plain["statistics"][engine.mesh.replica][name])
            for name, value in statistics.items()
        },
        "counted": counts,
        "silent": [name for name in gradients if not plain["gradients"][name].any()],
    }


def _step_apart(after: Tensor, before: Tensor, step: Tensor) -> float:
    """How far a weight is from where a step should have brought it, beside the step; fp32's
    rounding is left out."""
    apart = float((after.double() - before.double() - step.double()).norm()) - 1e-6 * float(
        before.double().norm()
    )
    if apart <= 0:
        return 0.0
    return apart / float(step.double().norm()) if step.any() else float("inf")


@contextmanager
def kept_gradients(engine: PipelineEngine, scale: float) -> Iterator[dict[str, Tensor]]:
    """Within: this stage's gradients right before the optimizer's step: whole, fp32, unscaled,
    unclipped."""
    from deepspeed.utils import safe_get_full_grad

    kept: dict[str, Tensor] = {}
    take_step = engine.deepspeed.step

    def keep_and_step() -> None:
        for name, each in engine.net.named_parameters():
            if each.requires_grad:
                kept[name] = safe_get_full_grad(each).detach().float() / scale
        take_step()

    engine.deepspeed.step = keep_and_step
    try:
        yield kept
    finally:
        del engine.deepspeed.step


def apart(reports: list[list[Report]], place: int, what: str) -> dict[str, float]:
    """Largest distance of each tensor over all ranks, in the step at `place`."""
    found: dict[str, float] = {}
    for report in (rank[place] for rank in reports):
        for name, value in report[what].items():
            found[name] = max(found.get(name, 0.0), value)
    return found


def faults_of(case: Case, place: int, reports: list[list[Report]]) -> list[str]:
    """What all ranks' reports of the step at `place` show to be wrong; nothing where the split
    model is right."""
    loss, gradient = LIMITS if case.precision == "fp32" else ROUNDED_LIMITS
    faults = []
    gradients, statistics = apart(reports, place, "gradients"), apart(reports, place, "statistics")
    trained, kept = names_of(case.model, case.freeze)
    for what, found, names, limit in (
        ("gradient", gradients, trained, gradient),
        ("statistic", statistics, kept, loss),
    ):
        if found.keys() != names:
            faults.append(f"no {what} of {sorted(names ^ found.keys())}")
        faults += [
            f"{what} of {name} is {value:.2e} apart"
            for name, value in found.items()
            if not value < limit
        ]
    if place == 0 and case.optimizer == "SGD":  # later steps carry momentum
        faults += _faults_of_step(case, apart(reports, place, "moved"))
    counts = {case.micro_batches * (place + 1)} | (set() if case.freeze is None else {0})
    for number, report in enumerate(rank[place] for rank in reports):
        mine, plain = report["norm"]
        if not report["loss"] < loss:
            faults.append(f"rank {number}: the loss is {report['loss']:.2e} apart")
        if not abs(mine - plain) < gradient * plain:
            faults.append(f"rank {number}: the norm is {mine}, not {plain}")
        if report["instances"][0] != report["instances"][1]:
            faults.append(
                f"rank {number}: {report['instances'][0]} boxes, not {report['instances'][1]}"
            )
        # BatchNorm that computes in fp32 whatever the weights are, and that of several replicas,
        # count no batches.
        if (
            case.precision in ("fp32", "autocast")
            and not case.sync_bn
            and report["counted"] - counts
        ):
            faults.append(f"rank {number}: BatchNorm counted {report['counted']} micro-batches")
    return faults


def _faults_of_step(case: Case, moved: dict[str, float]) -> list[str]:
    limit = (
        2 * (LIMITS if case.precision == "fp32" else ROUNDED_LIMITS)[1]
    )  # the gradient's, and the norm's
    return [
        f"the step of {name} is {value:.2e} apart"
        for name, value in moved.items()
        if not value < limit
    ]
