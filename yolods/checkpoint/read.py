"""Reads a checkpoint of any layout as complete named tensors, one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolods.checkpoint.names import MODEL, PROGRESS
from yolods.checkpoint.tensor_file import FileTensor, as_tensor, open_tensors
from yolods.zero.shards import Group, ShardPart, locate

Shard = Tensor | FileTensor
"""A shard as it was read: in memory if it is small."""
STORED = ("masters", "optimizer", "ema", "snapshot", "frozen")
"""Parts of a rank's state that grow with the model."""


def rank_file(folder: Path, rank: int) -> Path:
    """The file that a rank wrote."""
    return folder / f"rank{rank}.pt"


def load_rank(folder: Path, rank: int) -> dict[str, Any]:
    """The state that a rank wrote; what may be large is read when it is used."""
    return open_tensors(rank_file(folder, rank), stored=STORED.__contains__)


class Leaves(Mapping[str, Tensor]):
    """Whole parameters by name. Each is put together from its parts when it is asked for."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        """The parameters' shapes."""
        self._parts: dict[str, list[tuple[Shard, ShardPart]]] = {}

    def add(self, kind: str, groups: Sequence[Group], ranks: Sequence[Sequence[Shard]]) -> None:
        """Add the parameters of a stage.

        Args:
            kind: see `zero.master_weights.Kind`.
            groups: contents of each shard.
            ranks: the shards of every data-parallel rank.

        Raises:
            ValueError: a shard is too small for its contents.
        """
        sizes = [shard.numel() for shard in ranks[0]]
        self.shapes |= {name: tuple(shape) for group in groups for name, shape in group}
        self._parts |= {
            name: [(ranks[place.rank][place.shard], place) for place in found]
            for name, found in locate(kind, groups, sizes, len(ranks)).items()
        }

    def __getitem__(self, name: str) -> Tensor:
        parts, shape = self._parts[name], self.shapes[name]
        whole = torch.empty(math.prod(shape), dtype=dtype_of(parts[0][0]) if parts else None)
        start = 0
        for shard, place in parts:
            whole[start : start + place.count] = _part(shard, place)
            start += place.count
        return whole.view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _part(shard: Shard, place: ShardPart) -> Tensor:
    if isinstance(shard, FileTensor):
        return shard.piece(place.start, place.count)
    return shard.reshape(-1).narrow(0, place.start, place.count)


def dtype_of(shard: Shard) -> torch.dtype:
    """The data type of a shard."""
    return shard.like.dtype if isinstance(shard, FileTensor) else shard.dtype


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

    def _whole(self, shards_of: Callable[[dict[str, Any]], list[Shard]]) -> Leaves:
        whole = Leaves()
        for stage, part in enumerate(self.model["stages"]):
            ranks = [shards_of(state) for state in self._of_stage(stage)]
            whole.add(self.model["kind"], part["groups"], ranks)
        return whole

    def masters(self) -> Leaves:
        """The trained weights, fp32."""
        return self._whole(lambda state: state["masters"])

    def average(self) -> Leaves:
        """The moving average of the weights, fp32."""
        return self._whole(lambda state: state["ema"]["shards"])

    def moment(self, key: str) -> Leaves:
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
                found[name] = torch.stack(
                    [as_tensor(each[place]).float() for each in replicas]
                ).mean(0)
        return found

    def frozen(self) -> dict[str, Shard]:
        """Parameters that are not trained; in memory or stored."""
        found: dict[str, Shard] = {}
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
