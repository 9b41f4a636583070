"""Engines of every file in ds_configs/ that one GPU can run: steps, the host's waits, checkpoints,
evaluation."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_device import Device, device
from benchmarks.gpu_job import ROOT, Item, Job
from tests.parity.small import ACCUMULATION, CONFIGS, NAMES, Small, micro_batch, small_engine
from tests.rehearsal.engines import pinned
from yolods.checkpoint.state import collect
from yolods.device.host_copy import HostCopy
from yolods.distributed.world import Ranks, join_world, leave
from yolods.stability.record import StepRecord

SCALE_POWER = 4
"""fp16's first loss scale, as a power of 2: a step that is skipped shows neither norm nor
clipping."""
OVERFLOW_POWER = 20
"""And one at which a gradient of any step overflows."""
OVERFLOWING = ("zero1_fp16", "zero3_fp16")
"""Configurations that are given it."""
WARM = 3
"""Steps before the one whose waits are counted, in which allocators, libraries and DeepSpeed's
timer settle."""
TINY = ROOT / "tests" / "rehearsal" / "detector.yaml"
"""The rehearsal's model, where it is there."""
WAITS = 1
"""Of the host in a step under ZeRO-0 to 2, whatever the accumulation: for the verdict."""


def single_rank_configs(*, offload: bool) -> list[str]:
    """Files of ds_configs/ without a pipeline, by whether they offload to the host."""
    found = []
    for file in sorted(CONFIGS.glob("*.json")):
        settings = json.loads(file.read_text(encoding="utf-8"))
        offloads = "offload_optimizer" in settings.get("zero_optimization", {})
        if "pipeline" not in settings and offloads == offload:
            found.append(file.stem)
    return found


def engines(job: Job) -> None:
    """Every configuration that keeps its optimizer on the device; fp16 also at a scale that
    overflows."""
    _all(job, single_rank_configs(offload=False), OVERFLOWING)


def offloaded(job: Job) -> None:
    """Those that keep it on the host. On a GPU that is CPUAdam, which is compiled first."""
    with job.item("CPUAdam is compiled") as item:
        if not job.pretend:
            from deepspeed.ops.op_builder import CPUAdamBuilder

            CPUAdamBuilder().load(verbose=False)
        item.facts["builder"] = (
            "not asked for: the rehearsal steps with SGD" if job.pretend else "loaded"
        )
    _all(job, single_rank_configs(offload=True), **({"optimizer": "SGD"} if job.pretend else {}))


def _all(job: Job, names: Sequence[str], overflowing: Sequence[str] = (), **hyper: Any) -> None:
    if job.pretend and TINY.is_file():
        hyper["model"] = str(TINY)
    with device(job) as on:
        ranks = join_world()
        for name in names:
            with job.item(name) as item:
                look(item, ranks, on, applied(name, job.work), **hyper)
        for name in overflowing:
            with job.item(f"{name} at a scale that overflows") as item:
                _overflows(item, ranks, applied(name, job.work, OVERFLOW_POWER), **hyper)
        leave()


def applied(name: str, work: Path, power: int = SCALE_POWER) -> Path:
    """A copy of ds_configs/`name`.json with this first loss scale; under the default no fp16 step
    is skipped for it.

    An overflow lowers it at once, where DeepSpeed by itself waits for a second one.
    """
    settings = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    if "fp16" in settings:
        settings["fp16"] |= {"initial_scale_power": power, "hysteresis": 1}
    file = work / f"{name}-{power}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return file


def step(small: Small, number: int) -> StepRecord:
    """Take optimizer step `number`, as `Small.step` does, over batches in pinned memory, as loaders
    hand them over."""
    first = number * ACCUMULATION
    batches = [pinned(micro_batch(first + place)) for place in range(ACCUMULATION)]
    return small.engine.train_step(
        small.schedule.step_at(first * small.schedule.batch), iter(batches)
    )


def look(item: Item, ranks: Ranks, on: Device, file: Path, **hyper: Any) -> None:
    """Take steps on the small model, copy and restore its state, evaluate and export."""
    with small_engine(ranks, file, **hyper) as small:
        _steps(item, small, on, stage=json.loads(file.read_text())["zero_optimization"]["stage"])
        _restores(item, small, on)
        _evaluates(item, small, on)


def _steps(item: Item, small: Small, on: Device, stage: int) -> None:
    results = [step(small, number) for number in range(WARM)]
    with on.waits() as waits:
        results.append(step(small, WARM))
    item.facts["losses"] = [sum(each.loss.values()) for each in results]
    item.facts["norms"] = [each.grad_norm for each in results]
    item.facts["scales"] = [each.loss_scale for each in results]
    item.facts["waits of a step of 2 micro-batches"] = sum(waits.values())
    item.facts["by line"] = dict(waits.most_common())
    item.expect(all(map(math.isfinite, item.facts["losses"])), "a loss is not finite")
    item.expect(not any(each.skipped for each in results), "a step was skipped")
    if (
        stage < 3 and not small.config.deepspeed.offload_optimizer
    ):  # DeepSpeed has waits of its own there, told by line
        item.expect(
            sum(waits.values()) <= WAITS, f"{sum(waits.values())} waits in a step, {WAITS} expected"
        )


def _overflows(item: Item, ranks: Ranks, file: Path, **hyper: Any) -> None:
    """A step whose gradients overflow moves no weight and lowers the scale; where the scale fits,
    steps are applied."""
    with small_engine(ranks, file, **hyper) as small:
        before = [each.clone() for each in small.engine.masters.shards()]
        result = step(small, 0)
        same = all(
            torch.equal(*pair) for pair in zip(before, small.engine.masters.shards(), strict=True)
        )
        item.facts |= {
            "skipped for": result.verdict.cause,
            "scale": [result.loss_scale, result.next_scale],
        }
        item.expect(result.skipped and same, "an overflow was not skipped, or moved a weight")
        item.expect(result.next_scale < result.loss_scale, "the scale has not fallen")
        tries = range(1, 2 * OVERFLOW_POWER)
        applied_at = next((number for number in tries if not step(small, number).skipped), None)
        item.facts["steps until one is applied"] = applied_at
        item.expect(applied_at is not None, "no step was ever applied")


def _restores(item: Item, small: Small, on: Device) -> None:
    """A state that was copied comes back to the last bit, and the step after it is the same
    step."""
    engine = small.engine
    copier, state = HostCopy(), collect(engine)
    copier.take(state)
    with on.waits() as copying:
        kept = copier.take(collect(engine))
    before = [each.clone() for each in _tensors(engine._moving())]
    first = step(small, WARM + 1)
    with on.waits() as loading:
        engine.load_state(kept)
    same = all(torch.equal(*pair) for pair in zip(before, _tensors(engine._moving()), strict=True))
    again = step(small, WARM + 1)
    engine.snapshots.take()
    held = [each.clone() for each in _tensors(engine._moving())]
    step(small, WARM + 2)
    with on.waits() as rolling:
        engine._load_moving(engine.snapshots.snapshot)
    back = all(torch.equal(*pair) for pair in zip(held, _tensors(engine._moving()), strict=True))
    for name, waits in (("checkpoint copy", copying), ("load", loading), ("roll-back", rolling)):
        item.facts[f"waits: {name}"] = _brief(waits)
    item.facts["restored to the last bit"] = same
    item.facts["step after it repeats"] = (
        first.loss == again.loss and first.grad_norm == again.grad_norm
    )
    item.expect(same, "the restored state is another")
    item.expect(back, "a roll-back leaves another state than the snapshot's")
    item.expect(
        not any(each.is_cuda for each in _tensors(kept)),
        "a checkpoint's copy is still on the device",
    )


def _evaluates(item: Item, small: Small, on: Device) -> None:
    engine, images = small.engine, pinned(micro_batch(8))["img"]
    with engine.evaluating():
        engine.predict(images)
        with on.waits() as waits:
            boxes, raw = engine.predict(images)
            scored = engine.score(raw, pinned(micro_batch(7))).tolist()
    with on.waits() as exporting:
        weights = dict(engine.weights())
    item.facts["waits: evaluation of a batch, without NMS"] = _brief(waits)
    item.facts["waits: export"] = _brief(exporting)
    item.expect(
        bool(boxes.isfinite().all()) and all(map(math.isfinite, scored)),
        "an evaluation is not finite",
    )
    item.expect(boxes.shape[1] == 4 + len(NAMES), f"boxes have {boxes.shape[1]} rows")
    item.expect(
        bool(weights) and not any(each.is_cuda for each in weights.values()),
        "an export is on the device",
    )


def _brief(waits: Counter[str], most: int = 4) -> str:
    """How many, and the places that have most of them."""
    shown = "; ".join(
        f"{count} x {place.split(' < ')[0]}" for place, count in waits.most_common(most)
    )
    return f"{sum(waits.values())}" + (
        f" ({shown}{'; ..' if len(waits) > most else ''})" if waits else ""
    )


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
