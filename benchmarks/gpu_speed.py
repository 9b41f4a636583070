"""Images a second of yolov5n, s and x at 640 pixels beside ultralytics' own trainer, in turns; and
peak memory.

Both trainers are given the same batches, which lie in pinned memory: loaders are not measured, on
any machine alike.

    ultralytics' own loop          the loader that it asks for batches (`Turns`)
    next(batch)  ----------------> a batch; after a round of them, ours take their rounds before it
                                   gets the next

So the loop, its accumulation, its scaler and its moving average are ultralytics' own, and nothing
of it is re-written.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from ultralytics.engine import (
    trainer as theirs,
)  # before ranks are joined: it reads RANK when it is imported
from ultralytics.models.yolo.detect import DetectionTrainer

from benchmarks.gpu_engines import applied
from benchmarks.gpu_job import Item, Job
from tests.parity.small import NAMES
from tests.tiny import make_dataset
from yolods.config import add_train_arguments, build_run_config
from yolods.distributed.world import Ranks, join_world, leave
from yolods.engine.build import build_engine
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.graph.graph import build_graph, meta_model
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import choose_optimizer
from yolods.plan.cost import cost
from yolods.plan.stage_costs import StageCosts, Terms

MODELS = (("yolov5n", 32), ("yolov5s", 32), ("yolov5x", 16))
"""And the images of a batch."""
OURS = ("zero0_bf16_autocast", "zero1_bf16", "zero1_fp16")
"""Beside ultralytics' mixed precision, which is fp16 autocast."""
THEIRS = "ultralytics, amp"
BOXES = 8
"""An image."""
WARM, STEPS, ROUNDS = 5, 10, 3
RATE, MOMENTUM = 1e-4, 0.9
GIB = 2**30

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    models: tuple[tuple[str, int], ...] = MODELS
    imgsz: int = 640
    warm: int = WARM
    steps: int = STEPS
    rounds: int = ROUNDS


TINY = Sizes((("yolov5n", 2),), 64, 1, 1, 2)


class Done(Exception):
    """All rounds have been taken: ultralytics' trainer need not go on."""


def speed(job: Job) -> None:
    """Each model in an item of its own."""
    sizes = TINY if job.pretend else Sizes()
    place = torch.device("cpu" if job.pretend else "cuda:0")
    ranks = join_world()
    data = make_dataset(job.work / "data", train=8, val=2, nc=len(NAMES), size=64)
    for model, images in sizes.models:
        with (
            job.item(f"{model}, {sizes.imgsz} pixels, batches of {images}") as item,
            ExitStack() as stack,
        ):
            batch = _batch(images, sizes.imgsz, pinned=not job.pretend)
            rivals = []
            for name in OURS[:2] if job.pretend else OURS:
                file = applied(name, job.work)
                rivals.append(
                    stack.enter_context(_rival(name, file, model, images, sizes.imgsz, ranks))
                )
            turns = Turns(batch, rivals, sizes, place)
            _take(turns, model, data, job.work / "ultralytics", place)
            _tell(item, turns, images, sizes)
            item.facts["peak memory predicted, GiB (plan.stages, 16 bytes a parameter)"] = (
                _predicted(model, images, sizes)
            )
    leave()


@dataclass(eq=False)
class Rival:
    """One of our engines."""

    name: str
    engine: Any
    held: int
    """Bytes that building it has allocated."""
    peak: int = 0
    """Most bytes that its steps had allocated, with what it holds."""
    seconds: list[float] = field(default_factory=list)
    """Of each round."""

    def step(self, batch: Batch) -> None:
        """Take an optimizer step over one batch."""
        self.engine.train_step(Step(0, 1, 0, (RATE,) * 3, MOMENTUM), iter([batch]))


@contextmanager
def _rival(
    name: str, file: Path, model: str, images: int, imgsz: int, ranks: Ranks
) -> Iterator[Rival]:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = ["--data", "demo", "--model", model, "--imgsz", str(imgsz), "--batch-size", str(images)]
    words += [
        "--deepspeed_config",
        str(file),
        "--optimizer",
        "SGD",
        "--set",
        f"nbs={images}",
        "--set",
        "warmup_epochs=0",
    ]
    device = "cuda" if "fp16" in name else ranks.device.type
    config = build_run_config(parser.parse_args(words), world_size=1, device=device, environ={})
    torch.manual_seed(0)
    before = _allocated()
    net = build(architecture(parse_name(model), len(NAMES), 3), NAMES)
    choice = choose_optimizer(
        config.hyper, samples=48, batch=images, epochs=1, nc=len(NAMES), given=None
    )
    engine = build_engine(net, config, choice, ranks)
    engine.training()
    try:
        yield Rival(name, engine, _allocated() - before)
    finally:
        engine.deepspeed.destroy()


class Turns:
    """What ultralytics' loop iterates over in the place of its loader: see the module's picture."""

    def __init__(
        self, batch: Batch, rivals: list[Rival], sizes: Sizes, place: torch.device
    ) -> None:
        self.batch, self.rivals, self._sizes, self._place = batch, rivals, sizes, place
        self.theirs: list[float] = []
        """Seconds of each of its rounds."""
        self.loader: Any = None
        """Its own, for whatever else is asked of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return self._sizes.warm + self._sizes.rounds * self._sizes.steps

    def __iter__(self) -> Iterator[Batch]:
        sizes = self._sizes
        for _ in range(sizes.warm):
            yield dict(self.batch)
        for rival in self.rivals:
            for _ in range(sizes.warm):
                rival.step(self.batch)
        for _ in range(sizes.rounds):
            began = self._now()
            for _ in range(sizes.steps):
                yield dict(self.batch)
            self.theirs.append(self._now() - began)
            for rival in self.rivals:
                self._round(rival)
        raise Done

    def _round(self, rival: Rival) -> None:
        others = _allocated() - rival.held
        if self._place.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = self._now()
        for _ in range(self._sizes.steps):
            rival.step(self.batch)
        rival.seconds.append(self._now() - began)
        if self._place.type == "cuda":
            rival.peak = torch.cuda.max_memory_allocated() - others

    def _now(self) -> float:
        if self._place.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _take(turns: Turns, model: str, data: Path, folder: Path, place: torch.device) -> None:
    """Let ultralytics train until all rounds have been taken."""

    class Trainer(DetectionTrainer):
        def get_dataloader(self, *arguments: Any, mode: str = "train", **named: Any) -> Any:
            loader = super().get_dataloader(*arguments, mode=mode, **named)
            if mode == "train":
                turns.loader = loader
                return turns
            return loader

    images, imgsz = turns.batch["img"].shape[0], turns.batch["img"].shape[-1]
    settings = {
        "model": f"{model}.yaml",
        "data": str(data),
        "imgsz": imgsz,
        "batch": images,
        "nbs": images,
    }
    settings |= {
        "epochs": 1,
        "warmup_epochs": 0,
        "optimizer": "SGD",
        "lr0": RATE,
        "workers": 0,
        "plots": False,
    }
    settings |= {
        "save": False,
        "val": False,
        "project": str(folder),
        "device": "cpu" if place.type == "cpu" else 0,
    }
    # Whether this card's fp16 can be trusted ultralytics finds out with a model that it downloads.
    with mock.patch.object(theirs, "check_amp", lambda model: place.type == "cuda"):
        threads = torch.get_num_threads()
        try:
            Trainer(overrides=settings).train()
        except Done:
            return
        finally:
            torch.set_num_threads(threads)
    raise RuntimeError("ultralytics' trainer ended before its rounds were over")


def _tell(item: Item, turns: Turns, images: int, sizes: Sizes) -> None:
    """Images a second, medians over rounds; and each of ours over ultralytics, round by round."""
    taken = images * sizes.steps
    item.facts[f"{THEIRS}: images/s"] = taken / statistics.median(turns.theirs)
    for rival in turns.rivals:
        item.facts[f"{rival.name}: images/s"] = taken / statistics.median(rival.seconds)
        ratios = [one / other for one, other in zip(turns.theirs, rival.seconds, strict=True)]
        item.facts[f"{rival.name}: x ultralytics, round by round"] = ratios
        item.facts[f"{rival.name}: holds, peak, GiB"] = [rival.held / GIB, rival.peak / GIB]


def _predicted(model: str, images: int, sizes: Sizes) -> float:
    graph = build_graph(meta_model(architecture(parse_name(model), len(NAMES), 3)))
    stages = StageCosts(cost(graph, sizes.imgsz, 2), Terms(micro_batch=images, micro_batches=1))
    return float(stages.memory(1, 0)[0, -1]) / GIB


def _batch(images: int, imgsz: int, *, pinned: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    boxes = images * BOXES
    size = 0.05 + 0.3 * torch.rand(boxes, 2, generator=generator)
    batch = {
        "img": torch.randint(
            0, 256, (images, 3, imgsz, imgsz), dtype=torch.uint8, generator=generator
        ),
        "batch_idx": torch.arange(images).repeat_interleave(BOXES).float(),
        "cls": torch.randint(0, len(NAMES), (boxes, 1), generator=generator).float(),
        "bboxes": torch.cat(
            (size / 2 + (1 - size) * torch.rand(boxes, 2, generator=generator), size), 1
        ),
    }
    return {key: value.pin_memory() for key, value in batch.items()} if pinned else batch


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
