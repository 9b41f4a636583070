"""What a configuration makes of the compression, and what is said of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolods.config.deepspeed.yolods_block import CompressionConfig
from yolods.distributed.world import Ranks, Share
from yolods.engine import build_reduction as built
from yolods.engine.build_reduction import compression_lines
from yolods.stability.controller import Stability

CPU = torch.device("cpu")


def settings(kind: str = "powersgd", stage: int = 0, replicas: int = 2) -> Any:
    own = SimpleNamespace(compression=CompressionConfig(kind=kind, rank=1))
    return SimpleNamespace(own=own, dp_size=replicas, zero_stage=stage, precision="fp32")


def make(monkeypatch: pytest.MonkeyPatch, ds: Any) -> tuple[Any, list[Any]]:
    """The compression of a small net, and what would replace DeepSpeed's reduction."""
    averages: list[Any] = []
    monkeypatch.setattr(built, "replace_reduction", lambda _, average: averages.append(average))
    stability = Stability.__new__(Stability)
    stability._scale = SimpleNamespace(cur_scale=8.0)
    engine = SimpleNamespace(module=nn.Sequential(nn.Linear(20, 10), nn.BatchNorm1d(10)))
    ranks, share = Ranks(0, ds.dp_size, 0, "here", CPU), Share(0, ds.dp_size)
    found = built.build_compression(engine, ds, stability, ranks, share)
    return found, averages


def test_none_and_a_single_rank_leave_deepspeeds_reduction(monkeypatch) -> None:
    for ds in (settings("none"), settings(replicas=1)):
        assert make(monkeypatch, ds) == (None, [])


def test_gradients_are_averaged_with_the_scale_that_they_contain(monkeypatch) -> None:
    found, (average,) = make(monkeypatch, settings())
    assert found.compressed == ["0.weight"]
    asked: list[Any] = []
    found.average_ = lambda gradients, scale: asked.append((gradients, scale))
    gradients: list[Tensor] = []
    average(gradients)
    assert asked == [(gradients, 8.0)]


def test_the_lines_have_the_bytes_of_a_ring(monkeypatch) -> None:
    found, _ = make(monkeypatch, settings(replicas=4))
    monkeypatch.setattr(type(found), "sent_elements", 500_000)
    found.elements = 2_000_000
    (line,) = compression_lines(found, settings(replicas=4))
    assert line == (
        "PowerSGD of rank 1 compresses the gradients of 1 parameters: each rank sends 3.00 MB of "
        "gradients per step, without it 12.00"
    )
    _, more = compression_lines(found, settings(stage=1, replicas=4))
    assert "ZeRO-1 also sends the updated weights, 6.00 MB per rank and step" in more
    assert compression_lines(None, settings()) == []
