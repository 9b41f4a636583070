"""What each rank of `large_models_io.py` does: hands a large model over, saves and resumes it, and
notes the most memory that each of these took.

Started by `tests.ranks.on_ranks`, on a real engine and a real store.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yolods.checkpoint.convert import export
from yolods.checkpoint.pt_file import PtWeights, write_pt
from yolods.checkpoint.state import recut
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.config import add_train_arguments, build_run_config
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.engine.build import build_engine
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.blueprint import Blueprint
from yolods.optim.optimizers import choose_optimizer

NAMES = ("one", "two", "three")
MIB = 2**20
IMGSZ = 64
ZERO = {
    "stage": 3,
    # DeepSpeed's own copies of whole layers belong to the device's memory, which here is the host's
    # as well: as few as it can.
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
    "reduce_bucket_size": 1_000_000,
}


def measure(ranks: Ranks, folder: str, model: str) -> dict[str, Any]:
    """On a rank: MiB that each phase took at most beyond what the process had before, and sizes.

    Args:
        folder: for the files.
        model: of the zoo.
    """
    layers = architecture(parse_name(model), len(NAMES), 3)
    engine = _engine(ranks, Path(folder), model, layers)
    skeleton = Blueprint(layers, NAMES, 0).skeleton
    about = {"architecture": layers, "names": list(NAMES), "train_args": {}}
    store = CheckpointStore(Path(folder, "checkpoints"), ranks, keep=1, model=about)
    pt = Path(folder, "last.pt")

    def hand_over() -> None:
        weights = engine.weights()
        if ranks.is_main:
            write_pt(pt, skeleton, weights, {})
        deque(weights, maxlen=0)
        ranks.barrier()

    def evaluate() -> None:
        with engine.evaluating():
            engine.predict(torch.zeros(1, 3, IMGSZ, IMGSZ, dtype=torch.uint8))

    def merge() -> None:
        if ranks.is_main:
            export(Path(folder), Path(folder, "export.pt"), live=False, fp32=False)
        ranks.barrier()

    phases: dict[str, Callable[[], object]] = {
        "a forward pass": lambda: engine.predict(
            torch.zeros(1, 3, IMGSZ, IMGSZ, dtype=torch.uint8)
        ),
        "evaluation of the average": evaluate,
        "last.pt": hand_over,
        "best.pt loaded for the final evaluation": lambda: engine.adopt(PtWeights(pt)),
        "a checkpoint": lambda: store.save(engine, Progress(step=1)),
        "resume": lambda: store.load(engine),
        "resume under another layout": lambda: engine.load_state(recut(store.find(), engine)),
        "export of a checkpoint": merge,
    }
    engine.deepspeed.eval()
    found = {name: most_memory(phase) for name, phase in phases.items()}
    shards = engine.masters.shards()
    engine.deepspeed.destroy()
    return {
        "phases": found,
        "shard": 3 * sum(shard.numel() for shard in shards) * 4 / MIB,
        "leaf": max(each.numel() for each in skeleton.parameters()) * 4 / MIB,
        "whole": sum(each.numel() for each in skeleton.parameters()) * 4 / MIB,
    }


def most_memory(work: Callable[[], object]) -> float:
    """MiB by which the resident memory grew at most while `work` ran, mapped files included."""
    gc.collect()
    # Freed memory that the allocator keeps would hide what comes after.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before = _resident("VmHWM")
    work()
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def _engine(ranks: Ranks, folder: Path, model: str, layers: dict[str, Any]) -> Engine:
    """As a run builds it, with a momentum as after a step."""
    file = folder / f"ds{ranks.rank}.json"
    own = {"overflow": {"snapshot_steps": 0}}
    blocks = {"bf16": {"enabled": True}, "zero_optimization": ZERO, "yolods": own}
    file.write_text(json.dumps({"train_micro_batch_size_per_gpu": 2, **blocks}), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    flags = {"data": "demo", "model": model, "imgsz": IMGSZ, "deepspeed_config": file}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    config = build_run_config(
        parser.parse_args([*words, "--set", "optimizer=SGD"]),
        world_size=ranks.size,
        device="cpu",
        environ={},
    )
    net = build(layers, NAMES)
    choice = choose_optimizer(
        config.hyper, samples=1000, batch=config.batch_size, epochs=1, nc=len(NAMES)
    )
    engine = build_engine(net, config, choice, ranks)
    del net
    engine.masters.load_states(
        [{"momentum_buffer": torch.ones_like(shard)} for shard in engine.masters.shards()]
    )
    return engine
