"""A stand-in for an engine, with which a CheckpointStore can be tried in milliseconds and without
DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.whole_shards import cut_shards
from yolods.checkpoint.checked_files import write_text
from yolods.checkpoint.progress import Progress
from yolods.checkpoint.read import Checkpoint
from yolods.checkpoint.store import write_rank
from yolods.checkpoint.verify import render_manifest
from yolods.device.host_copy import host_copy
from yolods.distributed.world import Ranks, Share

ALONE = Ranks(0, 1, 0, "here", torch.device("cpu"))
MODEL = {"architecture": {"nc": 2}, "names": ["a", "b"], "train_args": {}}
WEIGHTS = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.tensor([7.0, 8.0, 9.0])}
GROUPS = [[("conv.weight", (2, 3))], [("conv.bias", (3,))]]
FIRST = Progress(step=1)


class Engine:
    """What a store asks of an engine: one rank's shards of `weights`, cut as `kind` says."""

    def __init__(
        self,
        kind: str = "whole",
        rank: int = 0,
        ranks: int = 1,
        weights: Mapping[str, Tensor] = WEIGHTS,
    ) -> None:
        """
        Args:
            weights: of the names and shapes in GROUPS.
        """
        self.kind, self.share = kind, Share(rank, ranks)
        sizes = [-(-6 // ranks), -(-3 // ranks)] if kind != "whole" else [6, 3]
        self.held = cut_shards(kind, GROUPS, weights, sizes, rank, ranks)
        self.masters = SimpleNamespace(kind=kind, shards=lambda: self.held)
        self.loaded: dict[str, Any] = {}
        self.compression: Any = None

    def layout(self) -> dict[str, Any]:
        """As the real one: how state is cut, and where each rank stands."""
        places = [[0, rank] for rank in range(self.share.dp_size)]
        return {"kind": self.kind, "stages": [self.describe()], "places": places}

    def describe(self) -> dict[str, Any]:
        """What this rank's shards are made of."""
        return {
            "groups": [[list(entry) for entry in group] for group in GROUPS],
            "statistics": ["bn.mean"],
        }

    def state(self) -> dict[str, Any]:
        """All that a rank saves."""
        return {
            "masters": self.held,
            "optimizer": [
                {"step": torch.tensor(5.0), "exp_avg": shard * 10} for shard in self.held
            ],
            "ema": {
                "updates": 5,
                "shards": [shard + 0.5 for shard in self.held],
                "buffers": [self._statistic(0.5)],
            },
            "statistics": [self._statistic(0.0)],
            "frozen": {"dfl.weight": torch.ones(1)},
            "stability": {"scale": {"cur_scale": 128.0}},
            "counters": {"global_steps": 5},
        }

    def _statistic(self, more: float) -> Tensor:
        return torch.tensor([self.share.dp_rank + more])

    def load_state(self, state: dict[str, Any]) -> None:
        """Remember what came, and read it as the real one does."""
        self.loaded = host_copy(state)


def write_ranks(folder: Path, kind: str, count: int, progress: Progress = FIRST) -> Checkpoint:
    """What `count` ranks would write of step 1 into `folder`, each its own file; whole, and named
    by `latest`."""
    step = folder / "step00000001"
    step.mkdir(parents=True)
    engines = [Engine(kind, rank, count) for rank in range(count)]
    files = {
        f"rank{rank}.pt": write_rank(step, rank, {**each.state(), "rng": {}})
        for rank, each in enumerate(engines)
    }
    files["progress.json"] = write_text(step / "progress.json", json.dumps(asdict(progress)))
    files["model.json"] = write_text(
        step / "model.json", json.dumps({**MODEL, **engines[0].layout()})
    )
    write_text(step / "manifest.json", render_manifest(files))
    (folder / "latest").write_text(step.name)
    return Checkpoint(step)
