"""Resumable checkpoints of a run: written beside, flushed, renamed; `latest` names only what is whole.

checkpoints/
  latest                     name of the newest whole checkpoint
  step00000128/              DeepSpeed's own files (weights, optimizer shards), and
    rank0.pt, rank1.pt ...   what DeepSpeed does not keep for every rank: average, running statistics, RNGs
    progress.json            where the run stood
    model.json               the architecture, and what the shards are made of
  .writing/                  one being written, or left over from a kill
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolods.cluster.ranks import Ranks
from yolods.engine.zero import ZeroEngine
from yolods.errors import UserError
from yolods.model.weights import save_atomically

log = logging.getLogger(__name__)

LATEST = "latest"
WRITING = ".writing"
PROGRESS = "progress.json"
MODEL = "model.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two optimizer steps; everything that is not a tensor."""

    position: int = 0
    """Samples of the stream consumed."""
    step: int = 0
    """Optimizer steps tried."""
    micro_batches: int = 0
    """Micro-batches a rank has consumed."""
    epochs_done: int = 0
    """Epochs evaluated and written to results.csv."""
    loss_sums: tuple[float, ...] = ()
    """Loss items summed over the steps of the unfinished epoch, weighted with their micro-batches."""
    loss_weight: int = 0
    """Micro-batches in `loss_sums`."""
    best_fitness: float | None = None
    """Fitness of weights/best.pt."""
    best_epoch: int = 0
    """Epoch (from 0) of weights/best.pt."""
    seconds: float = 0.0
    """Wall time of the run so far, over all its starts."""
    skipped: int = 0
    """Steps whose gradients overflowed."""
    replaced: int = 0
    """Samples replaced because their file could not be read."""
    layout: dict[str, Any] = field(default_factory=dict)
    """What the shards depend on: ranks, ZeRO stage, precision, offload."""


class CheckpointStore:
    """The checkpoints of one run folder. `save` and `load` are collectives."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int, layout: dict[str, Any], model: dict[str, Any]) -> None:
        """
        Args:
            folder: `checkpoints/` of the run.
            keep: how many of the newest to leave.
            layout: what the shards depend on; loading under another is refused.
            model: `architecture`, `names` and `train_args`, for an export without the run.
        """
        self._folder, self._ranks, self._keep = folder, ranks, keep
        self._layout, self._model = layout, model

    def save(self, engine: ZeroEngine, progress: Progress) -> None:
        """Write a checkpoint; the earlier ones stay whole until it is.

        Raises:
            OSError: on every rank, if any rank could not write; `latest` still names the earlier one.
        """
        tag = f"step{progress.step:08d}"
        writing = self._folder / WRITING
        if self._ranks.is_main:
            shutil.rmtree(writing, ignore_errors=True)
            (writing / tag).mkdir(parents=True)
        self._ranks.barrier()
        fault = self._write(engine, writing, tag)
        faults = [each for each in self._ranks.to_main(fault) if each]
        if self._ranks.is_main and not faults:
            fault = self._publish(writing / tag, progress, {**self._model, **engine.describe()})
            faults = [fault] if fault else []
        faults = self._ranks.from_main(faults)
        if faults:
            raise OSError(f"the checkpoint {tag} could not be written: {faults[0]}")

    def _write(self, engine: ZeroEngine, writing: Path, tag: str) -> str | None:
        try:
            engine.deepspeed.save_checkpoint(str(writing), tag=tag, save_latest=False)
            state = {
                "ema": engine.ema.state_dict(),
                "statistics": engine.statistics(),
                "torch_rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
                "python_rng": random.getstate(),
                "numpy_rng": np.random.get_state(),
            }
            save_atomically(writing / tag / f"rank{self._ranks.rank}.pt", state)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            return f"rank {self._ranks.rank} on {self._ranks.host}: {error}"
        return None

    def _publish(self, written: Path, progress: Progress, model: dict[str, Any]) -> str | None:
        """Rank 0: make a whole checkpoint the newest one, and drop the oldest."""
        try:
            record = {**asdict(progress), "layout": self._layout}
            _write_text(written / PROGRESS, json.dumps(record, indent=2))
            _write_text(written / MODEL, json.dumps(model))
            target = self._folder / written.name
            if target.exists():
                shutil.rmtree(target)
            os.replace(written, target)
            _write_text(self._folder / LATEST, written.name)
            shutil.rmtree(written.parent, ignore_errors=True)
            for old in sorted(self._folder.glob("step*"))[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            return str(error)
        return None

    def load(self, engine: ZeroEngine) -> Progress:
        """Bring `engine` to the newest checkpoint, bit for bit.

        Raises:
            UserError: there is none, or it was written under another layout.
        """
        newest = newest_in(self._folder)
        if newest is None:
            raise UserError(
                f"{self._folder}: no whole checkpoint to resume from; start the run afresh without --resume"
            )
        record = json.loads((newest / PROGRESS).read_text(encoding="utf-8"))
        self._check_layout(newest, record["layout"])
        path, _ = engine.deepspeed.load_checkpoint(str(newest.parent), tag=newest.name)
        if path is None:
            raise UserError(f"{newest}: DeepSpeed finds nothing to load in it")
        self._restore(engine, newest / f"rank{self._ranks.rank}.pt")
        return Progress(**{**record, "loss_sums": tuple(record["loss_sums"])})

    def _check_layout(self, newest: Path, saved: dict[str, Any]) -> None:
        differing = [
            f"{key} {saved.get(key)} there, {value} now"
            for key, value in self._layout.items()
            if saved.get(key) != value
        ]
        if differing:
            raise UserError(
                f"{newest} was written under another layout ({'; '.join(differing)}); resume under the same one, "
                "or export it and start anew from those weights: yolods export RUN --to model.pt"
            )

    def _restore(self, engine: ZeroEngine, file: Path) -> None:
        # Not `weights_only`: RNG states are tuples of numpy arrays. The file is one that this run wrote itself.
        state = torch.load(file, map_location="cpu", weights_only=False)
        engine.ema.load_state_dict(state["ema"])
        with torch.no_grad():
            for buffer, saved in zip(engine.statistics(), state["statistics"], strict=True):
                buffer.copy_(saved)
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])
        random.setstate(state["python_rng"])
        np.random.set_state(state["numpy_rng"])


def newest_in(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's `checkpoints/`, or None."""
    try:
        found = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return found if (found / PROGRESS).is_file() else None


def _write_text(path: Path, text: str) -> None:
    """Write, flush to the disk, rename over."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
