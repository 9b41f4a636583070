"""What the tests of pipelines compare on: an optimizer step of a split model, through the engine that a run builds, and
the same micro-batches through a plain ultralytics model at the same weights.

    Case               the cuts, the grid, the precision, the micro-batches and their sizes
    split_step(..)     on every rank of a grid: how far its own stage is from the plain model
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.small import MICRO, NAMES, SIZE, distance, floating_buffers, micro_batch, seasoned_weights
from yolods.cluster.ranks import Ranks
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.engine.optim import choose_optimizer, freeze, freeze_statistics
from yolods.engine.pipeline import PipelineEngine
from yolods.engine.schedule import Step
from yolods.engine.stages import StagePlan, build_stage
from yolods.model.blueprint import Blueprint
from yolods.model.build import architecture, parse_name
from yolods.model.graph import build_graph
from yolods.model.layers import exchange_layers
from yolods.model.loss import as_float
from yolods.plan.cost import Cost, cost
from yolods.plan.partition import partition, table

RATE, MOMENTUM, MAX_NORM = 100.0, 0.9, 10.0
"""A step so large that the weights' own rounding vanishes beside it; the next one starts from the old weights again."""
SHAPES = ((2, 3, 64, 64), (1, 3, 96, 64), (5, 3, 64, 128), (2, 3, 64, 64))
"""Of batches that are evaluated."""
FIRST = 100
"""Number of the first micro-batch."""

SCALE_POWER = 6
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": SCALE_POWER}},
    "autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}
"""What the DeepSpeed JSON says for each."""
LIMITS = (1e-5, 1e-4)
"""Largest distance of losses and statistics, and of gradients."""
ROUNDED_LIMITS = (1e-3, 1e-2)
"""Where one rounding more or less is 4e-3 of a number, as in bf16."""

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to split a model, and the step that is taken."""

    cuts: tuple[int | str, ...]
    """What each stage but the first begins with."""
    replicas: int = 1
    """Of the whole pipeline."""
    micro_batches: int = 2
    """Of the step, on each replica."""
    recompute: int = 0
    """activation_checkpoint_interval."""
    model: str = "yolov5n"
    """Architecture."""
    sizes: tuple[int, ...] = (SIZE,)
    """Image sizes of the steps that are taken one after the other, each from the same weights."""
    zero: int = 0
    """ZeRO stage."""
    precision: str = "fp32"
    """fp32, bf16, fp16 or autocast: bf16 over fp32 weights."""
    freeze: int | None = None
    """Layers, from the first on, that are not trained."""
    sync_bn: bool = False
    """BatchNorm's statistics over the replicas."""
    optimizer: str = "SGD"
    """What steps."""
    channels_last: bool = True
    """As a run has it; without it the split model rounds as plain ultralytics does."""
    slots: int | None = None
    """Ranks a host, as the launcher would tell; None: all are on one."""
    empty: tuple[int, ...] = ()
    """Places of micro-batches that hold no box."""

    @property
    def stages(self) -> int:
        """Parts of the model."""
        return len(self.cuts) + 1

    @property
    def ranks(self) -> int:
        """Of the grid."""
        return self.stages * self.replicas

    @property
    def scale(self) -> float:
        """What losses are multiplied by before they are backpropagated."""
        return 2.0**SCALE_POWER if self.precision == "fp16" else 1.0

    @property
    def label(self) -> str:
        """For people."""
        default = Case(cuts=())
        changed = {key: value for key, value in asdict(self).items() if value != getattr(default, key)}
        cuts = ",".join(map(str, self.cuts))
        rest = [f"{key}={value}" for key, value in changed.items() if key not in ("cuts", "sizes", "empty")]
        rest += [f"{key}={'/'.join(map(str, changed[key]))}" for key in ("sizes", "empty") if key in changed]
        return " ".join([f"cut {cuts}", *rest])

    def as_json(self) -> str:
        """The DeepSpeed JSON of a run that is split like this."""
        pipeline = {
            "stages": self.stages,
            "partition": list(self.cuts) or "balanced",
            "activation_checkpoint_interval": self.recompute,
        }
        return json.dumps(
            {
                "train_micro_batch_size_per_gpu": MICRO,
                "gradient_accumulation_steps": self.micro_batches,
                "zero_optimization": {"stage": self.zero, "reduce_bucket_size": 10**7, "allgather_bucket_size": 10**7},
                "pipeline": pipeline,
                **PRECISIONS[self.precision],
            }
        )


def case_of(fields: dict[str, Any]) -> Case:
    """From JSON, where tuples have become lists."""
    return Case(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


@contextmanager
def split_engine(ranks: Ranks, case: Case, folder: Path) -> Iterator[PipelineEngine]:
    """This rank's stage as a run builds it; taken down again after."""
    os.environ["LOCAL_WORLD_SIZE"] = str(case.slots or ranks.size)
    config = _configure(case, folder / f"ds-{ranks.rank}.json")
    blueprint, costs = _drawn(case.model, case.sizes[0])
    found = partition(costs, case.stages, case.cuts)
    plan = StagePlan(costs.graph, found, table(found, costs))
    choice = choose_optimizer(config.hyper, samples=1000, batch=config.batch_size, epochs=config.epochs, nc=len(NAMES))
    engine, _ = build_stage(blueprint, plan, config, choice, ranks, None)
    engine.training()
    try:
        yield engine
    finally:
        engine.deepspeed.destroy()
        del engine
        gc.collect()


@lru_cache
def _drawn(model: str, size: int) -> tuple[Blueprint, Cost]:
    """What every split of a model starts from: to work it out for each would take longer than the step."""
    blueprint = Blueprint(architecture(parse_name(model), len(NAMES), 3), NAMES, seed=0)
    return blueprint, cost(build_graph(blueprint.meta), size)


def _configure(case: Case, file: Path) -> RunConfig:
    file.write_text(case.as_json(), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = ["--data", "demo", "--model", case.model, "--imgsz", str(case.sizes[0]), "--epochs", "10"]
    words += ["--deepspeed_config", str(file), "--set", f"optimizer={case.optimizer}"]
    words += ["--set", f"channels_last={str(case.channels_last).lower()}", "--set", "weight_decay=0"]
    words += ["--set", f"sync_bn={str(case.sync_bn).lower()}"]
    words += [] if case.freeze is None else ["--freeze", str(case.freeze)]
    # A CPU has no fp16 for users; for tests it is only slow.
    device = "cuda" if case.precision == "fp16" else "cpu"
    return build_run_config(parser.parse_args(words), ranks=case.ranks, device=device, environ={})


def split_step(ranks: Ranks, case: Case, weights: dict[str, Tensor], folder: Path) -> list[Report]:
    """Take the case's steps; how far this rank's stage is from the plain model in each."""
    with split_engine(ranks, case, folder) as engine:
        return [_one_step(engine, case, size, weights) for size in case.sizes]


def split_prediction(ranks: Ranks, case: Case, weights: dict[str, Tensor], folder: Path) -> tuple[list[float], Report]:
    """Evaluate images of several shapes: how far boxes and scores are from the plain model's, where they are judged.

    And the report of a training step after that, which has to find the stages as they were.
    """
    net, apart = plain_model(case.model, weights).eval(), []
    with split_engine(ranks, case, folder) as engine:
        engine.adopt(weights)
        engine.deepspeed.eval()
        for number, shape in enumerate(SHAPES):
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
            found = engine.predict(images if engine.grid.first else None)
            assert (found is not None) == engine.grid.last
            if found is not None:
                with torch.no_grad():
                    apart.append(distance(found[0], net(images.float() / 255)[0]))
        engine.training()
        return apart, _one_step(engine, case, case.sizes[0], weights)


def _one_step(engine: PipelineEngine, case: Case, size: int, weights: dict[str, Tensor]) -> Report:
    engine.adopt(weights)
    step = Step(0, case.micro_batches, 0, (RATE, RATE, RATE), MOMENTUM)
    mine = [batch_of(case, place, engine.grid.replica) for place in range(case.micro_batches)]
    with kept_gradients(engine, case.scale) as gradients:
        result = engine.train_step(step, iter(mine), size if len(case.sizes) > 1 else None)
    plain = plain_step(case, size, weights)
    after = {name: engine.masters.full(each) for name, each in engine.net.named_parameters() if each.requires_grad}
    # Nesterov's first step; only the first is compared, and no other optimizer's.
    clipped = (1 + MOMENTUM) * RATE * min(1.0, MAX_NORM / plain["norm"])
    statistics = floating_buffers(engine.net)
    counts = {int(value) for name, value in engine.net.named_buffers() if name.endswith("num_batches_tracked")}
    return {
        "loss": distance(torch.tensor(list(result.loss.values())), plain["items"]),
        "norm": (result.grad_norm, plain["norm"]),
        "instances": (result.instances, plain["instances"]),
        "gradients": {name: distance(value, plain["gradients"][name]) for name, value in gradients.items()},
        "moved": {
            name: _step_apart(after[name], weights[name], -clipped * plain["gradients"][name]) for name in gradients
        },
        "statistics": {
            name: distance(value, plain["statistics"][engine.grid.replica][name]) for name, value in statistics.items()
        },
        "counted": counts,
        "silent": [name for name in gradients if not plain["gradients"][name].any()],
        "replica": engine.grid.replica,
    }


def _step_apart(after: Tensor, before: Tensor, step: Tensor) -> float:
    """How far a weight is from where a step should have brought it, beside the step; fp32's rounding is left out."""
    apart = float((after.double() - before.double() - step.double()).norm()) - 1e-6 * float(before.double().norm())
    if apart <= 0:
        return 0.0
    return apart / float(step.double().norm()) if step.any() else float("inf")


def batch_of(case: Case, place: int, replica: int) -> dict[str, Tensor]:
    """Micro-batch `place` of a replica; its images are those of 64 pixels, stretched where the model needs more."""
    batch = micro_batch(FIRST + place * case.replicas + replica)
    side = case.sizes[0]
    if side != SIZE:
        batch["img"] = F.interpolate(batch["img"].float(), size=(side, side), mode="bilinear").to(torch.uint8)
    if place in case.empty:
        batch |= {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    return batch


@contextmanager
def kept_gradients(engine: PipelineEngine, scale: float) -> Iterator[dict[str, Tensor]]:
    """Within: this stage's gradients right before the optimizer's step: whole, fp32, unscaled, unclipped."""
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


@lru_cache(maxsize=16)
def _plain_step(key: str, size: int, weights_of: _ByIdentity) -> Report:
    case, weights = case_of(json.loads(key)), weights_of.value
    nets = [_plain_of(case, weights) for _ in range(1 if case.sync_bn else case.replicas)]
    items, gradients, instances = [], {}, 0
    for place in range(case.micro_batches):
        batches = [batch_of(case, place, replica) for replica in range(case.replicas)]
        together = [batches] if case.sync_bn else [[batch] for batch in batches]
        for net, side_by_side in zip(nets, together, strict=True):
            items += _plain_pass(net, side_by_side, size, case)
        instances += sum(len(batch["cls"]) for batch in batches)
    for net in nets:
        for name, each in net.named_parameters():
            if each.requires_grad:
                gradients[name] = gradients.get(name, 0) + each.grad.float() / case.scale
    statistics = [{name: each.clone() for name, each in floating_buffers(net).items()} for net in nets]
    return {
        "items": torch.tensor(items).mean(0),
        "gradients": gradients,
        "norm": float(torch.stack([each.norm() for each in gradients.values()]).norm()),
        "instances": instances,
        "statistics": statistics * (case.replicas if case.sync_bn else 1),
    }


def _plain_pass(net: Any, batches: list[dict[str, Tensor]], size: int, case: Case) -> list[list[float]]:
    """Backpropagate what ultralytics' trainer does for micro-batches that go through the model together.

    Several are still judged one by one: ultralytics' loss of four images is not the mean over two times two.
    """
    images = torch.cat([batch["img"] for batch in batches]).float() / 255
    if images.shape[-1] != size:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "autocast"):
        whole = net(images.to(next(net.parameters()).dtype))
    criterion, losses, items, first = net.init_criterion(), [], [], 0
    for batch in batches:
        mine = {key: whole[key][first : first + MICRO] for key in ("boxes", "scores")}
        mine["feats"] = [level[first : first + MICRO] for level in whole["feats"]]
        loss, shown = criterion(as_float(mine), batch)
        losses.append(loss.sum())
        items.append([float(value) for value in shown.values()])
        first += MICRO
    (sum(losses) * case.scale).backward()
    return items


def _plain_of(case: Case, weights: dict[str, Tensor]) -> Any:
    """A plain model with the case's frozen layers, rounded as a run of its precision has it."""
    net = plain_model(case.model, weights)
    freeze_statistics(net, freeze(net, case.freeze))
    if case.precision in ("bf16", "fp16"):
        exchange_layers(net, low_precision=True, sync_bn=False, pointwise=False)
        for parameter in net.parameters():
            parameter.data = parameter.data.to(torch.bfloat16 if case.precision == "bf16" else torch.float16)
    return net


class _ByIdentity:
    """Makes the weights of a whole session a key of a cache."""

    def __init__(self, value: dict[str, Tensor]) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.value is self.value


def plain_step(case: Case, size: int, weights: dict[str, Tensor]) -> Report:
    """The same micro-batches through plain ultralytics: gradients summed as its trainer sums them.

    Cases that differ in nothing but how the model is split share one.
    """
    decides = {"replicas", "micro_batches", "model", "sizes", "empty", "precision", "freeze", "sync_bn"}
    fields = {key: value for key, value in asdict(case).items() if key in decides}
    return _plain_step(json.dumps({"cuts": (), **fields}, sort_keys=True), size, _ByIdentity(weights))


def plain_model(name: str, weights: dict[str, Tensor] | None = None) -> Any:
    """ultralytics' own model of its own yaml; nothing of yolods in it."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    net = DetectionModel(f"{name.replace('n6', 'n-p6')}.yaml", nc=len(NAMES), verbose=False)
    net.args = get_cfg()
    if weights is not None:
        net.load_state_dict(weights)
    for parameter_name, parameter in net.named_parameters():
        parameter.requires_grad = ".dfl" not in parameter_name
    return net.train()


def weights_for(ranks: Ranks, model: str, folder: Path) -> dict[str, Tensor]:
    """Weights to compare at, the same on all ranks: of yolov5n after forty steps, as `small` explains.

    Kept in `folder`, for the worlds of other sizes that follow.
    """
    file = folder / f"{model}.pt"
    if ranks.is_main and not file.exists():
        torch.save(seasoned_weights() if model == "yolov5n" else plain_model(model).state_dict(), file)
    ranks.barrier()
    return _read(file)


@lru_cache
def _read(file: Path) -> dict[str, Tensor]:
    return torch.load(file)


def apart(reports: list[list[Report]], place: int, what: str) -> dict[str, float]:
    """Largest distance of each tensor over all ranks, in the step at `place`."""
    found: dict[str, float] = {}
    for report in (rank[place] for rank in reports):
        for name, value in report[what].items():
            found[name] = max(found.get(name, 0.0), value)
    return found


def faults_of(case: Case, place: int, reports: list[list[Report]]) -> list[str]:
    """What all ranks' reports of the step at `place` show to be wrong; nothing where the split model is right."""
    loss, gradient = LIMITS if case.precision == "fp32" else ROUNDED_LIMITS
    faults = []
    gradients, statistics = apart(reports, place, "gradients"), apart(reports, place, "statistics")
    trained, kept = _names(case.model, case.freeze)
    for what, found, names, limit in (
        ("gradient", gradients, trained, gradient),
        ("statistic", statistics, kept, loss),
    ):
        if found.keys() != names:
            faults.append(f"no {what} of {sorted(names ^ found.keys())}")
        faults += [f"{what} of {name} is {value:.2e} apart" for name, value in found.items() if not value < limit]
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
            faults.append(f"rank {number}: {report['instances'][0]} boxes, not {report['instances'][1]}")
        # BatchNorm that computes in fp32 whatever the weights are, and that of several replicas, count no batches.
        if case.precision in ("fp32", "autocast") and not case.sync_bn and report["counted"] - counts:
            faults.append(f"rank {number}: BatchNorm counted {report['counted']} micro-batches")
    return faults


def _faults_of_step(case: Case, moved: dict[str, float]) -> list[str]:
    limit = 2 * (LIMITS if case.precision == "fp32" else ROUNDED_LIMITS)[1]  # the gradient's, and the norm's
    return [f"the step of {name} is {value:.2e} apart" for name, value in moved.items() if not value < limit]


@lru_cache
def _names(model: str, frozen: int | None) -> tuple[set[str], set[str]]:
    """Trained parameters and running statistics of the whole model."""
    net = plain_model(model)
    freeze(net, frozen)
    return {name for name, each in net.named_parameters() if each.requires_grad}, set(floating_buffers(net))
