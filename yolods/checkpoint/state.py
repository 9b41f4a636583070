"""A rank's state: collected from an engine, or cut from a checkpoint of another layout."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolods.checkpoint.read import Checkpoint
from yolods.engine.base import Engine
from yolods.errors import UserError
from yolods.zero.shards import cut_shards, misfits

UNCHANGED = ("snapshot", "frozen", "rng")
"""Parts of a state that are never written in place, so a save need not copy them."""


def collect(engine: Engine) -> dict[str, Any]:
    """Everything that this rank writes to a checkpoint. A collective.

    The tensors are the engine's own: copy them before training continues.
    """
    return {**engine.state(), "rng": rng_state()}


def recut(checkpoint: Checkpoint, engine: Engine) -> dict[str, Any]:
    """The state of `engine` on this rank, cut from a checkpoint of another layout.

    Raises:
        UserError: the checkpoint is of another model.
    """
    mine = engine.describe()
    sizes = [shard.numel() for shard in engine.masters.shards()]

    def shards(whole: dict[str, Tensor]) -> list[Tensor]:
        _refuse_misfits(checkpoint, misfits(mine["groups"], whole))
        return cut_shards(
            engine.masters.kind,
            mine["groups"],
            whole,
            sizes,
            engine.share.dp_rank,
            engine.share.dp_size,
        )

    def statistics(whole: dict[str, Tensor]) -> list[Tensor]:
        # Only names need a check: the shapes follow from the layers' weights, which are compared.
        _refuse_misfits(
            checkpoint, [f"{name} is missing" for name in mine["statistics"] if name not in whole]
        )
        return [whole[name] for name in mine["statistics"]]

    # An optimizer's state has tensors of the weight's shape, which are cut like weights, and
    # numbers such as `step`, which are the same for every parameter.
    example = checkpoint.moments()
    numbers = {
        key: value
        for key, value in example.items()
        if not isinstance(value, Tensor) or value.ndim == 0
    }
    states: list[dict[str, Any]] = [dict(numbers) for _ in sizes]
    for key in set(example) - set(numbers):
        for state, shard in zip(states, shards(checkpoint.moment(key)), strict=True):
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
        "stability": shared.get("stability", {}),
        "counters": shared["counters"],
    }


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
