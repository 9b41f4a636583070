"""What a step makes of numbers on the host, and what it reads, of which each is a wait on a device.

The passes and DeepSpeed are stand-ins here; what they add is counted by the rehearsal.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from yolods.config.deepspeed.yolods_block import YolodsConfig
from yolods.distributed.world import Ranks, Share
from yolods.engine.base import Engine
from yolods.engine.microbatches import ReplayableBatches
from yolods.engine.snapshots import Snapshots
from yolods.optim.lr_schedule import Step
from yolods.stability import controller as module
from yolods.stability.controller import Stability, StockStability
from yolods.traffic.meter import NoMeter
from yolods.zero.gradients import Decision

CPU = torch.device("cpu")
MADE = {"new_tensor", "tensor", "as_tensor", "from_numpy"}
"""Copies from the host, for which it waits: a fill (`full`, `zeros`) is none."""
READ = {"item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__array__"}


class Noted(TorchFunctionMode):
    """Notes them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in MADE | READ:
            self.names.append(name)
        return function(*arguments, **(named or {}))


class Passes(Engine):
    """Whose passes cost nothing."""

    def __init__(self, stability: Stability | StockStability) -> None:
        groups = [
            {"param_group": name, "lr": 0.0, "momentum": 0.0} for name in ("bias", "weight", "bn")
        ]
        self.deepspeed = SimpleNamespace(
            optimizer=SimpleNamespace(param_groups=groups), step=lambda: None
        )
        self.stability, self.share, self.ranks = stability, Share(0, 1), Ranks(0, 1, 0, "here", CPU)
        self.snapshots = Snapshots(lambda: [torch.ones(2)], dict, every=0, restores=True)
        self.diagnosis = SimpleNamespace(when="off", note_loss=lambda loss: None)
        self.ema = SimpleNamespace(update=lambda: None)
        self.traffic, self.compression = NoMeter(), None

    def _accumulate(self, step: Step, feed: ReplayableBatches, size: int | None) -> torch.Tensor:
        sums = torch.zeros(4)
        for _ in range(step.batches):
            self._lost(torch.ones(3), 5, sums)
        return sums


def judged_by(kind: str) -> Stability | StockStability:
    if kind == "stock":
        deepspeed = SimpleNamespace(
            fp16_enabled=lambda: False, get_global_grad_norm=lambda: None, optimizer=None
        )
        return StockStability(deepspeed, 1, by_hand=False)
    parts = [torch.tensor([3.0]), torch.tensor([4.0])]
    gradients = SimpleNamespace(
        names=["a", "b"], sharded=True, decision=Decision(), device=CPU, slices=lambda: parts
    )
    return Stability(
        gradients,
        ["a", "b"],
        YolodsConfig(),
        max_norm=10.0,
        scale=None,
        by_hand=False,
        replica=0,
        world_size=1,
        device=CPU,
    )


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("kind", ["own", "stock"])
def test_a_step_reads_once_and_copies_nothing_whatever_it_accumulates(
    kind: str, micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = torch.tensor([9.0, 16.0])  # on a device by a pass of its own
    monkeypatch.setattr(module, "squares", lambda parts, places, count: measured)
    engine = Passes(judged_by(kind))
    with Noted() as noted:
        result = engine.train_step(
            Step(0, micro_batches, 0, (0.1, 0.1, 0.1), 0.9), iter(()), stop=True
        )
    assert noted.names == (["cpu"] if kind == "own" else ["tolist"])
    assert result.stop and result.instances == 5 * micro_batches
    assert kind == "stock" or result.grad_norm == pytest.approx(5.0)
