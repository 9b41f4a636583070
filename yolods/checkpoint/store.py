"""Resumable checkpoints of a run: written beside, flushed, renamed; `latest` names only what is whole.

    checkpoints/
      latest                     name of the newest whole checkpoint
      step00000128/
        rank0.pt, rank1.pt ...   a rank's shards (fp32 masters, optimizer states, moving average), statistics, RNGs
        progress.json            where the run stood
        model.json               the architecture, and what the shards are made of
      .writing/                  one being written, or left over from a kill

A rank writes what it owns, under the names of parameters and not of DeepSpeed's buffers: so a checkpoint can be read
under any layout, and weights are not stored a second time in the precision they compute in.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolods.checkpoint.read import LATEST, MODEL, PROGRESS, Checkpoint, load_rank, newest_in, rank_file
from yolods.cluster.ranks import Ranks
from yolods.engine.base import Engine
from yolods.engine.shards import cut
from yolods.errors import UserError
from yolods.model.weights import save_atomically

log = logging.getLogger(__name__)

WRITING = ".writing"


@dataclass(frozen=True)
class Progress:
    """Where a run stands between two optimizer steps; everything that is not a tensor."""

    position: int = 0
    """Samples of the stream consumed."""
    step: int = 0
    """Optimizer steps tried."""
    micro_batches: int = 0
    """Micro-batches a replica has consumed."""
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
    rollbacks: int = 0
    """Times that the run went back to a snapshot."""
    image_faults: tuple[tuple[str, int], ...] = ()
    """Image files found not to be finite, and how often; see `overflow.quarantine`."""


class CheckpointStore:
    """The checkpoints of one run folder. `save` and `load` are collectives."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int, model: dict[str, Any]) -> None:
        """
        Args:
            folder: `checkpoints/` of the run.
            keep: how many of the newest to leave.
            model: `architecture`, `names` and `train_args`, for an export without the run.
        """
        self._folder, self._ranks, self._keep, self._model = folder, ranks, keep, model

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint; the earlier ones stay whole until it is.

        Raises:
            OSError: on every rank, if any rank could not write; `latest` still names the earlier one.
        """
        tag = f"step{progress.step:08d}"
        writing = self._folder / WRITING / tag
        layout = engine.layout()
        faults = self._ranks.from_main(self._make_room(writing))
        if not faults:
            fault = self._write(engine, writing)
            faults = [each for each in self._ranks.to_main(fault) if each]
            if self._ranks.is_main and not faults:
                faults = self._publish(writing, progress, {**self._model, **layout})
            faults = self._ranks.from_main(faults)
        if faults:
            raise OSError(f"the checkpoint {tag} could not be written: {faults[0]}")

    def _make_room(self, writing: Path) -> list[str]:
        if not self._ranks.is_main:
            return []
        try:
            shutil.rmtree(writing.parent, ignore_errors=True)
            writing.mkdir(parents=True)
        except OSError as error:
            return [str(error)]
        return []

    def _write(self, engine: Engine, writing: Path) -> str | None:
        state = {**engine.state(), "rng": _rng_state()}
        try:
            save_atomically(rank_file(writing, self._ranks.rank), state)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            return f"rank {self._ranks.rank} on {self._ranks.host}: {error}"
        return None

    def _publish(self, written: Path, progress: Progress, model: dict[str, Any]) -> list[str]:
        """Rank 0: make a whole checkpoint the newest one, and drop the oldest."""
        try:
            _write_text(written / PROGRESS, json.dumps(asdict(progress), indent=2))
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
            return [str(error)]
        return []

    def load(self, engine: Engine) -> Progress:
        """Bring `engine` to the newest checkpoint: bit for bit under the layout that wrote it, and under another with
        the same weights, optimizer states and average, and running statistics averaged over the replicas.

        Raises:
            UserError: there is none, or it is of another model.
        """
        newest = newest_in(self._folder)
        if newest is None:
            raise UserError(f"{self._folder}: no whole checkpoint to resume from; start afresh, without --resume")
        checkpoint = Checkpoint(newest)
        layout = engine.layout()
        if all(checkpoint.model[key] == json.loads(json.dumps(value)) for key, value in layout.items()):
            state = load_rank(newest, self._ranks.rank)
            engine.load_state({**state, "frozen": checkpoint.frozen()})
            _set_rng_state(state["rng"])
        else:
            log.info("%s was written under another layout; its shards are cut anew", newest)
            engine.load_state(_recut(checkpoint, engine))
        return _progress(checkpoint.progress)


def _progress(record: dict[str, Any]) -> Progress:
    """From JSON, which knows lists only."""
    faults = tuple((file, count) for file, count in record.get("image_faults", ()))
    return Progress(**{**record, "loss_sums": tuple(record["loss_sums"]), "image_faults": faults})


def _recut(checkpoint: Checkpoint, engine: Engine) -> dict[str, Any]:
    """The state of `engine` on this rank, cut from a checkpoint of another layout."""
    mine = engine.describe()
    sizes = [shard.numel() for shard in engine.masters.shards()]
    names = {name for group in mine["groups"] for name, _ in group}

    def shards(whole: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        missing = sorted(names - set(whole))
        if missing:
            raise UserError(f"{checkpoint.folder}: holds no {missing[0]} and {len(missing) - 1} more; another model?")
        return cut(engine.masters.kind, mine["groups"], whole, sizes, engine.share.index, engine.share.count)

    example = checkpoint.moments()
    numbers = {key: value for key, value in example.items() if key == "step" or not isinstance(value, torch.Tensor)}
    states: list[dict[str, Any]] = [dict(numbers) for _ in sizes]
    for key in set(example) - set(numbers):
        for state, shard in zip(states, shards(checkpoint.moment(key)), strict=True):
            state[key] = shard
    live, average = checkpoint.statistics(average=False), checkpoint.statistics(average=True)
    shared = checkpoint.shared()
    return {
        "masters": shards(checkpoint.masters()),
        "optimizer": states,
        "ema": {
            "updates": shared["ema"]["updates"],
            "shards": shards(checkpoint.average()),
            "buffers": [average[name] for name in mine["statistics"]],
        },
        "statistics": [live[name] for name in mine["statistics"]],
        "counts": checkpoint.counts(),
        "frozen": checkpoint.frozen(),
        "stability": shared.get("stability", {}),
        "counters": shared["counters"],
    }


def _rng_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].clone())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])


def _write_text(path: Path, text: str) -> None:
    """Write, flush to the disk, rename over."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
