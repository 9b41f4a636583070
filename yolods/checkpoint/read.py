"""Reads a checkpoint of any layout as complete named tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolods.checkpoint.names import MODEL, PROGRESS
from yolods.zero.shards import join_shards


def rank_file(folder: Path, rank: int) -> Path:
    """The file that a rank wrote."""
    return folder / f"rank{rank}.pt"


def load_rank(folder: Path, rank: int) -> dict[str, Any]:
    """The state that a rank wrote, on the CPU, memory-mapped from its file.

    `weights_only` is off because it refuses the numpy arrays in RNG states; a run wrote the file
    itself, so unpickling it is safe.
    """
    return torch.load(rank_file(folder, rank), map_location="cpu", weights_only=False, mmap=True)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk, as `verify` found it."""

    folder: Path
    """checkpoints/stepNNNNNNNN of the run."""

    @cached_property
    def progress(self) -> dict[str, Any]:
        """The content of progress.json."""
        return json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))

    @cached_property
    def model(self) -> dict[str, Any]:
        """The content of model.json.

        Its keys: architecture, names, train_args, depends; `kind` of the shards; `stages`, the
        parameter groups and statistics of each; `places`, (stage, replica) per rank.
        """
        return json.loads((self.folder / MODEL).read_text(encoding="utf-8"))

    @cached_property
    def _ranks(self) -> list[dict[str, Any]]:
        count = len(self.model["places"])
        return [load_rank(self.folder, rank) for rank in range(count)]

    def _of_stage(self, stage: int) -> list[dict[str, Any]]:
        """The states of a stage's ranks, in the order of replicas."""
        places = [
            (replica, rank)
            for rank, (at, replica) in enumerate(self.model["places"])
            if at == stage
        ]
        return [self._ranks[rank] for _, rank in sorted(places)]

    def _whole(self, shards_of: Callable[[dict[str, Any]], list[Tensor]]) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for stage, part in enumerate(self.model["stages"]):
            ranks = [shards_of(state) for state in self._of_stage(stage)]
            whole |= join_shards(self.model["kind"], part["groups"], ranks)
        return whole

    def masters(self) -> dict[str, Tensor]:
        """The trained weights, fp32."""
        return self._whole(lambda state: state["masters"])

    def average(self) -> dict[str, Tensor]:
        """The moving average of the weights, fp32."""
        return self._whole(lambda state: state["ema"]["shards"])

    def moment(self, key: str) -> dict[str, Tensor]:
        """One kind of the optimizer's state, such as `exp_avg`, for every parameter."""
        return self._whole(lambda state: [each[key] for each in state["optimizer"]])

    def moments(self) -> dict[str, Any]:
        """The optimizer state of the first shard, from which the keys and the numbers are read."""
        return self._ranks[0]["optimizer"][0] if self._ranks[0]["optimizer"] else {}

    def statistics(self, *, average: bool) -> dict[str, Tensor]:
        """BatchNorm's running statistics or their moving average, as the mean over the replicas."""
        found: dict[str, Tensor] = {}
        for stage, part in enumerate(self.model["stages"]):
            replicas = [
                state["ema"]["buffers"] if average else state["statistics"]
                for state in self._of_stage(stage)
            ]
            for place, name in enumerate(part["statistics"]):
                found[name] = torch.stack([each[place].float() for each in replicas]).mean(0)
        return found

    def frozen(self) -> dict[str, Tensor]:
        """Parameters that are not trained."""
        found: dict[str, Tensor] = {}
        for state in self._ranks:
            found |= state["frozen"]
        return found

    def counts(self) -> dict[str, Tensor]:
        """BatchNorm's counters of batches, the same on every replica."""
        found: dict[str, Tensor] = {}
        for state in self._ranks:
            found |= state.get("counts", {})
        return found

    def shared(self) -> Mapping[str, Any]:
        """The state that is equal on all ranks: loss scale, DeepSpeed's counters, EMA updates."""
        return self._ranks[0]
