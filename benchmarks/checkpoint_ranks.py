"""What each rank of `checkpoint.py` does: intervals of steps, with a checkpoint at the beginning of
most of them.

Started by `tests.ranks.on_ranks`. A checkpoint is of a real engine, and is written by a real store.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.checkpoint_report import BESIDE, NONE, WAITING, WAYS, Interval, Seen
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.config import add_train_arguments, build_run_config
from yolods.distributed.store import open_store
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.engine.build import build_engine
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import choose_optimizer

NAMES = ("one", "two", "three")
BOXES = 6
"""Of every image."""
MIB = 2**20
WARM_STEPS = 3


class Watched(CheckpointStore):
    """A store that knows what the last writing cost its thread."""

    worked = 0.0
    """Seconds of a core; waits for the disk and for other ranks are not in it."""

    def _write_all(self, *parts: Any) -> None:
        began = time.thread_time()
        try:
            super()._write_all(*parts)
        finally:
            self.worked = time.thread_time() - began


def measure(
    ranks: Ranks,
    folder: str,
    model: str,
    imgsz: int,
    images: int,
    steps: int,
    rounds: int,
    stage: int,
) -> dict[str, Any]:
    """On a rank: `Seen`, as a dictionary.

    Args:
        folder: for the checkpoints and the JSON.
        images: of a step on this rank.
        steps: of an interval.
        stage: of ZeRO.
    """
    engine = _engine(ranks, Path(folder), model, imgsz, images, stage)
    batch = _batch(images, imgsz, ranks.rank)
    kv_store = open_store(ranks)
    about = {
        "architecture": architecture(parse_name(model), len(NAMES), 3),
        "names": list(NAMES),
        "train_args": {},
    }
    stores = {
        way: Watched(
            Path(folder, way),
            ranks,
            keep=2,
            model=about,
            kv_store=kv_store if way == BESIDE else None,
        )
        for way in (WAITING, BESIDE)
    }
    taken = 0

    def step() -> None:
        nonlocal taken
        engine.train_step(Step(taken, 1, 0, (1e-4, 1e-4, 1e-4), 0.9), iter([batch]))
        taken += 1

    for _ in range(WARM_STEPS):
        step()
    for store in stores.values():  # the first one allocates the buffers
        store.save(engine, Progress(step=taken))
        store.wait()
    gc.collect()
    intervals: list[list[Interval]] = []
    for number in range(rounds):
        row = []
        for place in range(len(WAYS)):
            way = WAYS[(number + place) % len(WAYS)]
            row.append(_interval(ranks, way, stores.get(way), engine, steps, step))
        intervals.append(row)
    newest = max((each for each in Path(folder, BESIDE).glob("step*")), key=lambda each: each.name)
    size = (newest / f"rank{ranks.rank}.pt").stat().st_size / MIB
    ranks.barrier()
    return Seen(size, intervals).as_dict()


def _interval(
    ranks: Ranks, way: str, store: Watched | None, engine: Engine, steps: int, step: Any
) -> Interval:
    """A checkpoint, if the way has one, and then steps; what is still being written at the end is
    waited for apart."""
    ranks.barrier()
    began = time.perf_counter()
    if way != NONE:
        assert store is not None
        store.save(engine, Progress(step=engine.deepspeed.global_steps))
    held = time.perf_counter() - began
    for _ in range(steps):
        step()
    ranks.barrier()
    seconds = time.perf_counter() - began
    if store is not None:
        store.wait()
    left = time.perf_counter() - began - seconds
    ranks.barrier()
    return Interval(way, held, store.worked if store is not None else 0.0, seconds, left)


def _engine(ranks: Ranks, folder: Path, model: str, imgsz: int, images: int, stage: int) -> Engine:
    """As a run builds it."""
    file = folder / f"ds{ranks.rank}.json"
    file.write_text(
        json.dumps(
            {"train_micro_batch_size_per_gpu": images, "zero_optimization": {"stage": stage}}
        ),
        encoding="utf-8",
    )
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = [
        "--data",
        "demo",
        "--model",
        model,
        "--imgsz",
        str(imgsz),
        "--deepspeed_config",
        str(file),
    ]
    words += ["--set", "optimizer=AdamW"]
    config = build_run_config(
        parser.parse_args(words), world_size=ranks.size, device="cpu", environ={}
    )
    torch.manual_seed(config.seed)
    net = build(architecture(parse_name(model), len(NAMES), 3), NAMES)
    choice = choose_optimizer(
        config.hyper, samples=1000, batch=config.batch_size, epochs=1, nc=len(NAMES)
    )
    engine = build_engine(net, config, choice, ranks)
    engine.training()
    return engine


def _batch(images: int, imgsz: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 16, 16, generator=generator)
    size = 0.1 + 0.4 * torch.rand(images * BOXES, 2, generator=generator)
    return {
        "img": (F.interpolate(coarse, size=(imgsz, imgsz), mode="bilinear") * 255).to(torch.uint8),
        "batch_idx": torch.arange(images).repeat_interleave(BOXES).float(),
        "cls": torch.randint(0, len(NAMES), (images * BOXES, 1), generator=generator).float(),
        "bboxes": torch.cat(
            (size / 2 + (1 - size) * torch.rand(images * BOXES, 2, generator=generator), size), 1
        ),
    }
