"""One measured training step of the product on a rank: what its allocator holds at the peak."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.engine.build import build_engine
from yolods.engine.build_pipeline import build_stage
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import OptimizerChoice
from yolods.plan.cost import cost
from yolods.plan.partition import partition, table
from yolods.plan.stage_plan import DTYPE_BYTES, StagePlan

STEPS = 3
"""The last one is measured: after the first, the optimizer has its states."""


# Wide: one field for each dimension of the grid.
@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """A training run whose memory is predicted and measured."""

    model: str = "yolov5n"
    imgsz: int = 320
    micro_batch: int = 2
    accumulation: int = 2
    precision: str = "fp32"
    zero_stage: int = 1
    ranks: int = 1
    offload: bool = False
    cuts: tuple[int, ...] = ()
    recompute: int = 0
    sync_bn: bool = False
    classes: int = 3
    boxes: int = 8
    bucket: int = 10_000_000
    optimizer: str = "SGD"

    @property
    def stages(self) -> int:
        """Stages of the pipeline; 1: none."""
        return len(self.cuts) + 1

    def as_json(self) -> dict[str, Any]:
        """The DeepSpeed JSON of the run."""
        zero: dict[str, Any] = {
            "stage": self.zero_stage,
            "reduce_bucket_size": self.bucket,
            "allgather_bucket_size": self.bucket,
        }
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        content: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "zero_optimization": zero,
        }
        if self.precision != "fp32":
            content[self.precision] = {"enabled": True}
        if self.cuts:
            content["pipeline"] = {
                "stages": self.stages,
                "partition": list(self.cuts),
                "activation_checkpoint_interval": self.recompute,
            }
        elif self.recompute:
            given = {"number_checkpoints": self.recompute} if self.recompute > 0 else {}
            content["activation_checkpointing"] = given
        return content


_SMALLEST, _RANGE = 0.02, 0.4
"""Sides of boxes, in shares of the image: most are small."""
MARK = "the measured step"


def measured_peak(ranks: Ranks, folder: str, case: dict[str, Any]) -> int:
    """On a rank: bytes that the allocator holds at the peak of a steady step.

    Every allocation since before the engine was built counts.
    """
    given = MemoryCase(**{**case, "cuts": tuple(case["cuts"])})
    count_in_all_threads()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        engine = _engine(given, ranks, Path(folder))
        engine.training()
        for number in range(STEPS - 1):
            _step(engine, given, number)
        # Cycles of references would keep a bucket alive until the collector comes by.
        gc.collect()
        # As after the first hundred steps of a run: this one has the optimizer's states.
        engine.snapshots.take()
        with torch.profiler.record_function(MARK):
            _step(engine, given, STEPS - 1)
    return _peak(profile.profiler.kineto_results.experimental_event_tree())


def count_in_all_threads() -> None:
    """Let the allocator's running sum include what threads do that the profiler does not follow.

    A thread of gloo's often drops the last reference to a collective's tensor. The profiler has no
    event for such a release, and a sum over its events would hold that memory for ever: 2 to 10 MB
    more, another amount in each run. The sum itself (`ProfiledCPUMemoryReporter`,
    c10/core/CPUAllocator.cpp, torch 2.13) counts it under this flag, which torch has for logs only.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def _peak(roots: Sequence[Any]) -> int:
    """The largest sum that an allocation within the marked step left."""
    events = list(flat(roots))
    (mark,) = (event for event in events if event.name == MARK)
    return max(
        event.extra_fields.total_allocated
        for event in events
        if event.name == "[memory]"
        and mark.start_time_ns <= event.start_time_ns <= mark.end_time_ns
    )


def flat(events: Sequence[Any]) -> Iterator[Any]:
    """Events of the profiler's tree, and all below them."""
    for event in events:
        yield event
        yield from flat(event.children)


def blueprint_of(case: MemoryCase) -> Blueprint:
    """The case's model without weights."""
    names = tuple(str(number) for number in range(case.classes))
    return Blueprint(architecture(parse_name(case.model), case.classes, 3), names, seed=0)


def configured(case: MemoryCase, file: Path) -> RunConfig:
    """The case's configuration, by a user's way: a JSON and flags."""
    file.write_text(json.dumps(case.as_json()), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    flags = {"data": "demo", "model": case.model, "imgsz": case.imgsz, "epochs": 10}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    settings = {"optimizer": case.optimizer, "sync_bn": str(case.sync_bn).lower()}
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return build_run_config(
        parser.parse_args([*words, "--deepspeed_config", str(file)]),
        world_size=case.ranks,
        device="cpu",
        environ={},
    )


def _engine(case: MemoryCase, ranks: Ranks, folder: Path) -> Engine:
    config = configured(case, folder / f"ds-{ranks.rank}.json")
    blueprint = blueprint_of(case)
    choice = OptimizerChoice(case.optimizer, 1e-4, 0.9, 0.0)
    if not case.cuts:
        net, _ = blueprint.whole(None)
        return build_engine(net, config, choice, ranks)
    costs = cost(build_graph(blueprint.meta), case.imgsz, DTYPE_BYTES[case.precision])
    found = partition(costs, case.stages, case.cuts)
    plan = StagePlan(costs.graph, found, table(found, costs), measured=False)
    return build_stage(blueprint, plan, config, choice, ranks, None)[0]


def _step(engine: Engine, case: MemoryCase, number: int) -> None:
    rates = (1e-4, 1e-4, 1e-4)
    step = Step(number, case.accumulation, 0, rates, 0.9)
    engine.train_step(step, _batches(case, number))


def _batches(case: MemoryCase, number: int) -> Iterator[dict[str, Tensor]]:
    """Micro-batches of noise; the boxes of an image differ, and are as many as the case says."""
    for place in range(case.accumulation):
        yield batch_of(case, number * case.accumulation + place)


def box_areas() -> tuple[float, ...]:
    """Areas of such boxes, in sixteen equal parts of their distribution."""
    sides = [_SMALLEST + _RANGE * ((place + 0.5) / 32) ** 2 for place in range(32)]
    areas = sorted(wide * high for wide in sides for high in sides)
    return tuple(sum(areas[start : start + 64]) / 64 for start in range(0, len(areas), 64))


def batch_of(case: MemoryCase, seed: int) -> dict[str, Tensor]:
    """A micro-batch on the host as the loader returns it, with `case.boxes` boxes an image."""
    generator = torch.Generator().manual_seed(seed)
    total = case.micro_batch * case.boxes
    sides = _SMALLEST + _RANGE * torch.rand(total, 2, generator=generator) ** 2
    centre = sides / 2 + (1 - sides) * torch.rand(total, 2, generator=generator)
    shape = (case.micro_batch, 3, case.imgsz, case.imgsz)
    return {
        "img": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "batch_idx": torch.arange(case.micro_batch).repeat_interleave(case.boxes).float(),
        "cls": torch.randint(0, case.classes, (total, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, sides), 1),
    }
