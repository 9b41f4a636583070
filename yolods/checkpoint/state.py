"""A rank's state: collected from an engine, or cut from a checkpoint of another layout."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolods.checkpoint.read import Checkpoint, Leaves, dtype_of
from yolods.checkpoint.tensor_file import as_tensor
from yolods.device.stored import Stored
from yolods.distributed.world import Share
from yolods.engine.base import Engine
from yolods.errors import UserError
from yolods.zero.shards import Group, fill_shard, misfits

UNCHANGED = ("snapshot", "frozen", "rng")
"""Parts of a state that are never written in place, so a save need not copy them."""


def collect(engine: Engine) -> dict[str, Any]:
    """Everything that this rank writes to a checkpoint. A collective.

    The tensors are the engine's own: copy them before training continues.
    """
    return {**engine.state(), "rng": rng_state()}


class CutShard(Stored):
    """A rank's shard out of a checkpoint of another layout, read one parameter after the other."""

    def __init__(self, like: Tensor, leaves: Leaves, kind: str, group: Group, share: Share) -> None:
        """
        Args:
            like: on the meta device.
            leaves: the checkpoint's parameters.
            kind: how the engine cuts its shards.
            group: contents of the shard.
            share: this rank's place among the replicas.
        """
        super().__init__(like)
        self._cut = leaves, kind, group, share

    def view_as(self, other: Tensor) -> CutShard:
        """The same values in the shape of `other`, which has as many elements."""
        return CutShard(self.like.view(other.shape), *self._cut)

    def write_to(self, target: Tensor) -> None:
        """See `Stored.write_to`."""
        leaves, kind, group, share = self._cut
        fill_shard(kind, group, target, leaves.__getitem__, share.dp_rank, share.dp_size)


class MeanMemory(Stored):
    """The mean of what the ranks have not sent yet of a gradient."""

    def __init__(self, memories: Sequence[Tensor | Stored]) -> None:
        """
        Args:
            memories: every rank's, of one shape, fp32.
        """
        first = memories[0]
        super().__init__(first.like if isinstance(first, Stored) else first.to("meta"))
        self._memories = memories

    def view_as(self, other: Tensor) -> MeanMemory:
        """The same values in the shape of `other`, which has as many elements."""
        return MeanMemory([each.view_as(other) for each in self._memories])

    def write_to(self, target: Tensor) -> None:
        """See `Stored.write_to`."""
        target.zero_()
        for each in self._memories:
            target += as_tensor(each).to(target.device) / len(self._memories)


def recut(checkpoint: Checkpoint, engine: Engine) -> dict[str, Any]:
    """The state of `engine` on this rank, cut from a checkpoint of another layout.

    Its shards are read while the engine loads them, so that no whole model is in memory.

    Raises:
        UserError: the checkpoint is of another model.
    """
    mine, kind = engine.describe(), engine.masters.kind
    sizes = [shard.numel() for shard in engine.masters.shards()]

    def shards(leaves: Leaves, dtype: torch.dtype = torch.float32) -> list[CutShard]:
        _refuse_misfits(checkpoint, misfits(mine["groups"], leaves.shapes))
        return [
            CutShard(
                torch.empty(size, dtype=dtype, device="meta"), leaves, kind, group, engine.share
            )
            for group, size in zip(mine["groups"], sizes, strict=True)
        ]

    def statistics(whole: dict[str, Tensor]) -> list[Tensor]:
        # Only names need a check: the shapes follow from the layers' weights, which are compared.
        _refuse_misfits(
            checkpoint, [f"{name} is missing" for name in mine["statistics"] if name not in whole]
        )
        return [whole[name] for name in mine["statistics"]]

    # An optimizer's state has tensors of the weight's shape, which are cut like weights, and
    # numbers such as `step`, which are the same for every parameter.
    example = checkpoint.moments()
    numbers = {key: value for key, value in example.items() if not _is_cut(value)}
    states: list[dict[str, Any]] = [dict(numbers) for _ in sizes]
    for key in set(example) - set(numbers):
        moments = shards(checkpoint.moment(key), dtype_of(example[key]))
        for state, shard in zip(states, moments, strict=True):
            state[key] = shard
    shared = checkpoint.shared()
    return {
        "masters": shards(checkpoint.masters()),
        "optimizer": states,
        "ema": {
            "updates": shared["ema"]["updates"],
            "shards": shards(checkpoint.average()),
            "buffers": statistics(checkpoint.statistics(average=True)),
        },
        "statistics": statistics(checkpoint.statistics(average=False)),
        "counts": checkpoint.counts(),
        "frozen": checkpoint.frozen(),
        "compression": _mean_memories(checkpoint.compression()),
        "stability": shared.get("stability", {}),
        "counters": shared["counters"],
    }


def _mean_memories(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of the compression for any number of ranks: what is applied depends on the mean of
    the memories alone. The factors are the same on all ranks."""
    if not ranks:
        return {}
    names = ranks[0]["memory"]
    return {
        "memory": {name: MeanMemory([each["memory"][name] for each in ranks]) for name in names},
        "factors": ranks[0]["factors"],
    }


def _is_cut(value: Any) -> bool:
    """Whether a value in an optimizer's state is cut like a weight."""
    like = value.like if isinstance(value, Stored) else value
    return isinstance(like, Tensor) and like.ndim > 0


def _refuse_misfits(checkpoint: Checkpoint, lines: list[str]) -> None:
    if lines:
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        raise UserError(f"{checkpoint.folder} is of another model: {lines[0]}{more}")


def rng_state() -> dict[str, Any]:
    """The states of all random generators of this process."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"].clone())
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"].clone())
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
