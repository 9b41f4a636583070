"""A model's buckets, and an engine's reduction; with ranks: tests/dist/test_early_reduction.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from yolods.config.reducing import ReductionConfig
from yolods.distributed.world import Ranks
from yolods.engine import build_reduction
from yolods.engine.build_reduction import bucket_of, lower_traffic

RANKS = Ranks(0, 2, 0, "here", torch.device("cpu"))
EARLY = ReductionConfig(owned=True, overlapped=True, once="step")
LATE = ReductionConfig(owned=True, overlapped=False, once="step")


@pytest.mark.parametrize(("reduction", "expected"), [(EARLY, 10), (LATE, 60)])
def test_buckets_fit_what_is_trained(reduction: ReductionConfig, expected: int) -> None:
    module = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(1000, 1))
    for parameter in module[1].parameters():
        parameter.requires_grad = False
    assert bucket_of(reduction, module) == expected


def test_parameters_that_are_divided_already_count_whole() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.ds_numel = 60
    assert bucket_of(EARLY, module) == 10


@pytest.mark.parametrize(
    ("stage", "reduction", "expected"),
    [
        (0, ReductionConfig(owned=False, overlapped=True, once="step"), "whole"),
        (0, ReductionConfig(owned=False, overlapped=False, once="step"), None),
        (1, EARLY, "owned"),
        (1, LATE, "owned"),
        (2, ReductionConfig(owned=False, overlapped=True, once="step"), None),
        (3, ReductionConfig(owned=False, overlapped=True, once="step"), None),
    ],
)
def test_each_stage_gets_its_reduction(
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    reduction: ReductionConfig,
    expected: str | None,
) -> None:
    made: list[str] = []

    def kind(name: str) -> Any:
        def make(*_: Any, **__: Any) -> None:
            made.append(name)

        make.fits = lambda _: True  # type: ignore[attr-defined]
        return make

    monkeypatch.setattr(build_reduction, "WholeReduction", kind("whole"))
    monkeypatch.setattr(build_reduction, "OwnedReduction", kind("owned"))
    ds: Any = SimpleNamespace(zero_stage=stage, reduction=reduction)
    engine = SimpleNamespace(
        optimizer=None,
        dp_world_size=2,
        module=nn.Linear(1, 1),
        zero_reduce_bucket_size=lambda: 5,
    )
    lower_traffic(engine, ds, RANKS)
    assert made == ([] if expected is None else [expected])
    engine.dp_world_size = 1
    lower_traffic(engine, ds, RANKS)
    assert len(made) <= 1


@pytest.mark.parametrize(
    ("once", "memory", "expected", "told"),
    [
        ("step", 1, True, 0),
        ("micro_batch", 10**9, False, 0),
        ("auto", 50 * 4 * 1000, True, 0),
        ("auto", 50 * 4 * 1000 - 1, False, 1),
    ],
)
def test_whole_gradients_are_kept_where_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    once: str,
    memory: int,
    expected: bool,
    told: int,
) -> None:
    made: list[bool] = []

    def owned(_: Any, *, overlapped: bool, once: bool) -> None:
        made.append(once)

    owned.fits = lambda _: True  # type: ignore[attr-defined]
    monkeypatch.setattr(build_reduction, "OwnedReduction", owned)
    monkeypatch.setattr(build_reduction.dist, "all_reduce", lambda least, _: least.fill_(memory))
    optimizer = SimpleNamespace(gradient_accumulation_dtype=torch.float32)
    module = nn.Linear(1000, 1, bias=False, dtype=torch.bfloat16)
    engine = SimpleNamespace(optimizer=optimizer, dp_world_size=2, module=module)
    reduction = ReductionConfig(owned=True, overlapped=True, once=once)
    ds: Any = SimpleNamespace(zero_stage=2, reduction=reduction, accumulation=4)
    lower_traffic(engine, ds, RANKS)
    assert made == [expected]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == told and all(
        "4 micro-batches, 2.5 times as much" in line for line in lines
    )
