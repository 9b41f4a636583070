"""A model's buckets, and an engine's reduction; with ranks: tests/dist/test_early_reduction.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from yolods.config.reducing import ReductionConfig
from yolods.engine import build_reduction
from yolods.engine.build_reduction import bucket_of, lower_traffic

EARLY = ReductionConfig(owned=True, overlapped=True)
LATE = ReductionConfig(owned=True, overlapped=False)


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
        (0, ReductionConfig(owned=False, overlapped=True), "whole"),
        (0, ReductionConfig(owned=False, overlapped=False), None),
        (1, EARLY, "owned"),
        (1, LATE, "owned"),
        (2, ReductionConfig(owned=False, overlapped=True), None),
        (3, ReductionConfig(owned=False, overlapped=True), None),
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
    engine = SimpleNamespace(
        optimizer=None,
        dp_world_size=2,
        zero_optimization_stage=lambda: stage,
        zero_reduce_bucket_size=lambda: 5,
    )
    lower_traffic(engine, reduction)
    assert made == ([] if expected is None else [expected])
    engine.dp_world_size = 1
    lower_traffic(engine, reduction)
    assert len(made) <= 1
