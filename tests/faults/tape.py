"""Faults on purpose: numbers made bad at a chosen layer, rank and micro-batch of a real engine's
step.

draw(..)        a tape of faults, the same for a seed
Injector        puts a fault into an engine's next step
play(..)        on every rank: a tape from one end to the other, and what the engine made of each
                fault
faults_in(..)   what is wrong with that
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.half import allow_fp16
from tests.parity.pipes import split_engine
from tests.parity.small import CONFIGS, micro_batch, small_engine
from tests.parity.splits import Case
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.optim.lr_schedule import Step
from yolods.stability.record import StepRecord

MODEL = "yolov5[0.33,0.1]"
LAYOUTS = (
    *("zero0", "zero1", "zero2", "zero3", "pipeline", "zero1_syncbn"),
    *("zero0_powersgd", "zero1_powersgd"),
)
HALF_LAYOUTS = ("zero1_fp16", "zero2_fp16", "zero3_fp16", "pipeline_fp16", "zero1_powersgd_fp16")
KINDS = ("activation", "activation gradient", "parameter gradient", "spike", "image")
MICRO_BATCHES = 2
WARM_STEPS = 20
"""Clean steps that come first: spikes are only told from what is usual."""
JUDGED = 5
"""The last of them that are already judged."""
# As high as this model bears: a first descent from 65536 would be an overflow of its own.
FP16 = {"enabled": True, "initial_scale_power": 6, "hysteresis": 1000}
SPIKE = 1e7
SILENT = ("model.24.cv2.1.", "model.24.cv2.2.")
"""Boxes of the larger strides, of which images of 64 pixels mostly hold none: ten million times no
gradient is none."""
CUT = "10"
"""Where the pipeline's second stage begins."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong in one step."""

    kind: str
    """Of `KINDS`."""
    module: str
    """A convolution by its name in the model; for `image` none."""
    value: str
    """inf or nan; for a spike nothing."""
    rank: int
    """Where; in a pipeline its replica, of which the stage that holds the layer suffers."""
    micro_batch: int
    image: int
    """Place in the micro-batch."""

    @property
    def layer(self) -> str:
        """model.N."""
        return ".".join(self.module.split(".")[:2])


def draw(
    count: int,
    seed: int,
    modules: Sequence[str],
    ranks: int,
    micro_batches: int = MICRO_BATCHES,
    kinds: Sequence[str] = KINDS,
) -> list[Fault]:
    """A tape; every kind is as frequent as the others."""
    rng = random.Random(seed)
    found, coming = [], list[str]()
    for _ in range(count):
        coming = coming or rng.sample(list(kinds), len(kinds))
        kind = coming.pop()
        found.append(
            Fault(
                kind=kind,
                module=_module(kind, modules, rng),
                value="" if kind == "spike" else rng.choice(("inf", "nan")),
                rank=rng.randrange(ranks),
                micro_batch=rng.randrange(micro_batches),
                image=rng.randrange(2),
            )
        )
    return found


def _module(kind: str, modules: Sequence[str], rng: random.Random) -> str:
    if kind == "image":
        return ""
    return rng.choice([name for name in modules if kind != "spike" or not name.startswith(SILENT)])


class Injector:
    """Makes one step of an engine go bad, and its second run as well."""

    def __init__(self, engine: Engine) -> None:
        self.fault: Fault | None = None
        self._engine = engine
        self._forward = self._backward = self._taken = 0
        self._recomputed = False
        self._micro_batches = MICRO_BATCHES
        self._stack = ExitStack()
        for name, module in engine.net.named_modules():
            if isinstance(module, nn.Conv2d) and any(
                each.requires_grad for each in module.parameters()
            ):
                self._stack.callback(_first(module, partial(self._on_output, name)).remove)
                hook = module.weight.register_hook(partial(self._on_parameter, name))
                self._stack.callback(hook.remove)
        self._at, engine.diagnosis.at = engine.diagnosis.at, self._note
        self._inputs, engine.inputs = engine.inputs, self

    def close(self) -> None:
        """Leave the engine as it was."""
        self._stack.close()
        self._engine.diagnosis.at, self._engine.inputs = self._at, self._inputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inputs, name)

    def images(self, batch: Tensor, size: int | None = None) -> Tensor:
        """In place of `InputFormat.images`."""
        images = self._inputs.images(batch, size)
        if self._due("image", "", self._taken):
            images[self.fault.image, 0, 3, 3] = float(self.fault.value)
        self._taken += 1
        return images

    def begin(self, fault: Fault | None, micro_batches: int = MICRO_BATCHES) -> None:
        """What the next step, of that many micro-batches, is to suffer."""
        self.fault, self._micro_batches, self._taken = fault, micro_batches, 0

    def _note(self, phase: str, number: int) -> None:
        self._at(phase, number)
        self._recomputed = phase == "backward"  # whatever runs forward in it
        if phase == "forward":
            self._forward = number
        else:
            self._backward = number

    def _due(self, kind: str, module: str, micro_batch: int) -> bool:
        fault = self.fault
        return (
            fault is not None
            and (fault.kind, fault.module) == (kind, module)
            # A second run of the step counts on from the first.
            and micro_batch % self._micro_batches == fault.micro_batch
            and fault.rank % self._engine.share.dp_size == self._engine.share.dp_rank
        )

    def _on_output(
        self, name: str, module: nn.Module, inputs: Any, output: Tensor
    ) -> Tensor | None:
        micro_batch = self._backward if self._recomputed else self._forward
        if self._due("activation", name, micro_batch):
            poison = torch.zeros_like(output)
            poison[self.fault.image, 0, 0, 0] = float(self.fault.value)
            return output + poison
        if output.requires_grad:
            output.register_hook(partial(self._on_gradient, name, micro_batch))
        return None

    def _on_gradient(self, name: str, micro_batch: int, gradient: Tensor) -> Tensor | None:
        if self._due("spike", name, micro_batch):
            return gradient * SPIKE
        if self._due("activation gradient", name, micro_batch):
            bad = gradient.clone()
            bad[self.fault.image, 0, 0, 0] = float(self.fault.value)
            return bad
        return None

    def _on_parameter(self, name: str, gradient: Tensor) -> Tensor | None:
        if self._due("parameter gradient", name, self._backward):
            bad = gradient.clone()
            bad[(0,) * bad.ndim] = float(self.fault.value)
            return bad
        return None


def _first(module: nn.Module, hook: Any) -> Any:
    """Before a probe that is there already: it has to see what has been made bad."""
    return module.register_forward_hook(hook, prepend=True)


@contextmanager
def engine_of(ranks: Ranks, layout: str, folder: Path, blocks: dict[str, Any]) -> Iterator[Engine]:
    """A real engine of a layout on the tape's model.

    Args:
        folder: for its JSON.
        blocks: of its JSON.
    """
    if "_powersgd" in layout:
        layout = layout.replace("_powersgd", "")
        compression = {"compression": {"kind": "powersgd", "rank": 2}}
        blocks = {**blocks, "yolods": {**blocks.get("yolods", {}), **compression}}
    half = layout.endswith("fp16")
    if half:
        allow_fp16()
    with ExitStack() as stack:
        if layout.startswith("pipeline"):
            shape = {
                "cuts": (CUT,),
                "replicas": ranks.size // 2,
                "zero": 1,
                "model": MODEL,
                "optimizer": "AdamW",
            }
            shape["recompute"] = 3 if layout.endswith("_recompute") else 0
            case = Case(**shape, precision="fp16" if half else "fp32", blocks=blocks)
            engine = stack.enter_context(split_engine(ranks, case, folder))
        else:
            name = layout if half else f"{layout.removesuffix('_syncbn')}_fp32"
            settings = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")) | blocks
            file = folder / f"{name}-{ranks.rank}.json"
            file.write_text(json.dumps(settings), encoding="utf-8")
            hyper = {"model": MODEL, "optimizer": "AdamW", "sync_bn": layout.endswith("_syncbn")}
            engine = stack.enter_context(small_engine(ranks, file, **hyper)).engine
        yield engine


def play(
    ranks: Ranks,
    layout: str,
    count: int,
    seed: int,
    folder: str,
    clean: int = 0,
    every: int = 3,
    attribution: str = "armed",
    warm: int = WARM_STEPS,
) -> dict[str, Any]:
    """Play a tape of `count` faults after `warm` clean steps, a clean step after each `every`, and
    `clean` clean steps at the end.

    Returns:
        on each rank: `told`, what became of each fault; `alarms`, clean steps that were not
        applied.
    """
    told, alarms, number = [], 0, 0
    overflow = {"warmup_steps": warm - JUDGED, "quarantine": 0, "attribution": attribution}
    blocks: dict[str, Any] = {"yolods": {"overflow": overflow}}
    if layout.endswith("fp16"):
        blocks["fp16"] = FP16
    kinds = KINDS
    if attribution != "armed":
        # A parameter's hooks run in the order in which they were set: a probe that was first sees
        # nothing bad.
        kinds = tuple(kind for kind in KINDS if kind != "parameter gradient")
    with engine_of(ranks, layout, Path(folder), blocks) as engine:
        injector = Injector(engine)
        held = ranks.from_main(ranks.to_main(convolutions(engine)))
        modules = sorted({name for names in held for name in names})
        for _ in range(warm):
            alarms += not step_on(engine, injector, None, number).verdict.applied
            number += 1
        for place, fault in enumerate(draw(count, seed, modules, ranks.size, kinds=kinds)):
            told.append(_suffer(engine, injector, fault, number))
            number += 1
            if place % every == every - 1:
                alarms += not step_on(engine, injector, None, number).verdict.applied
                number += 1
        for _ in range(clean):
            alarms += not step_on(engine, injector, None, number).verdict.applied
            number += 1
        injector.close()
    return {"told": told, "alarms": alarms, "clean": warm + count // every + clean}


def convolutions(engine: Engine) -> list[str]:
    """Trained convolutions that this rank holds, by name."""
    return [
        name
        for name, module in engine.net.named_modules()
        if isinstance(module, nn.Conv2d) and any(each.requires_grad for each in module.parameters())
    ]


def step_on(engine: Engine, injector: Injector, fault: Fault | None, number: int) -> StepRecord:
    """Step `number` of a run, with a fault in it or without."""
    injector.begin(fault)
    rates = (1e-5, 1e-5, 1e-5)
    step = Step(number * MICRO_BATCHES, MICRO_BATCHES, 0, rates, 0.9)
    return engine.train_step(step, iter(_batches(number, engine.share.dp_rank)))


def _batches(number: int, replica: int) -> list[dict[str, Any]]:
    found = []
    for place in range(MICRO_BATCHES):
        key = (number * MICRO_BATCHES + place) * 8 + replica
        batch: dict[str, Any] = dict(micro_batch(key))
        found.append(
            {**batch, "im_file": tuple(f"image-{key}-{i}.jpg" for i in range(len(batch["img"])))}
        )
    return found


def _suffer(engine: Engine, injector: Injector, fault: Fault, number: int) -> dict[str, Any]:
    """Take a step that goes bad, and see what it left behind on this rank."""
    before = _held(engine)
    result = step_on(engine, injector, fault, number)
    after = _held(engine)
    return {
        "fault": asdict(fault),
        "layer": fault.layer,
        "action": result.verdict.action,
        "cause": result.verdict.cause,
        "culprits": [{**asdict(each), "layer": each.layer} for each in result.culprits],
        "unmoved": all(torch.equal(old, new) for old, new in zip(before, after, strict=True)),
        "finite": all(bool(each.isfinite().all()) for each in after),
        "suffered": _suffers(engine, fault),
    }


def _suffers(engine: Engine, fault: Fault) -> bool:
    """Whether it was this rank that the fault was put into."""
    here = (
        engine.share.first_stage
        if fault.kind == "image"
        else fault.module in dict(engine.net.named_modules())
    )
    return here and fault.rank % engine.share.dp_size == engine.share.dp_rank


def _held(engine: Engine) -> list[Tensor]:
    """Weights, moments, statistics, averages and unsent gradients of this rank."""
    state = engine._moving()
    compression = [each for part in state["compression"].values() for each in part.values()]
    moments = [
        value for each in state["optimizer"] for value in each.values() if isinstance(value, Tensor)
    ]
    ema = state["ema"]
    return [
        each.detach().clone()
        for each in (
            *state["masters"],
            *moments,
            *state["statistics"],
            *ema["shards"],
            *ema["buffers"],
            *compression,
        )
    ]


def faults_in(reports: Sequence[dict[str, Any]], layout: str) -> list[str]:
    """What is wrong with what all ranks told of a tape."""
    wrong = [
        f"{report['alarms']} false alarms in {report['clean']} clean steps"
        for report in reports[:1]
    ]
    wrong = wrong if reports[0]["alarms"] else []
    for place, told in enumerate(zip(*(report["told"] for report in reports), strict=True)):
        fault = told[0]["fault"]
        where = f"fault {place} ({layout}, {fault})"
        if any(each["action"] == "apply" for each in told):
            wrong.append(f"{where}: the update was applied")
            continue
        if (
            not all(each["unmoved"] and each["finite"] for each in told)
            and told[0]["action"] != "rollback"
        ):
            wrong.append(f"{where}: something moved, or is not finite")
        if len({(each["action"], each["cause"]) for each in told}) > 1:
            wrong.append(f"{where}: ranks disagree: {[each['action'] for each in told]}")
        if (fault_found := _misnamed(fault, told, layout)) is not None:
            wrong.append(f"{where}: {fault_found}")
    return wrong


def _misnamed(fault: dict[str, Any], told: Sequence[dict[str, Any]], layout: str) -> str | None:
    culprits = told[0]["culprits"]
    if len(culprits) != 1:
        return f"{len(culprits)} culprits: {[(each['name'], each['rank']) for each in culprits]}"
    (found,) = culprits
    layer, kinds = told[0]["layer"], {fault["value"]} if fault["value"] else {"spike"}
    if layout.endswith("fp16") and not fault["value"]:
        kinds = {"inf", "inf, nan"}  # ten million times an fp16 gradient
    (rank,) = (place for place, each in enumerate(told) if each["suffered"])
    if fault["kind"] == "image":
        layer = "input"
        files = found["files"]
        if not (
            found["single_images"]
            and len(files) == 1
            and files[0].endswith(f"-{fault['image']}.jpg")
        ):
            return f"names {files}"
    named = (
        found["layer"],
        found["rank"],
        found["micro_batch"],
        not kinds.isdisjoint({found["kind"], *found["kind"].split(", ")}),
    )
    expected = (layer, rank, fault["micro_batch"], True)
    return (
        None
        if named == expected
        else f"names {named}, not {expected} ({found['name']} {found['phase']})"
    )


def summary(reports: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How often each kind of fault was met, and what was done."""
    counts: dict[str, int] = {}
    for told in reports[0]["told"]:
        for key in (told["fault"]["kind"], f"-> {told['action']}", f"as {told['cause']}"):
            counts[key] = counts.get(key, 0) + 1
    return counts
