"""BatchNorm's statistics taken anew: every layout's are those of all images' activations in
ultralytics' own model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.pipes import split_engine
from tests.parity.small import (
    distances,
    floating_buffers,
    micro_batch,
    plain_model,
    seasoned_weights,
    small_engine,
    worst,
)
from tests.parity.splits import Case
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.model.layers import SyncBatchNormFloat32

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

BATCHES = 3
"""On two ranks that is one more for the first than for the second, which repeats an image that does
not count."""
LAYOUTS = ("zero0_fp32", "zero3_fp32", "frozen", "sync_bn", "pipeline")

Weights = dict[str, Tensor]


def measure(ranks: Ranks) -> dict[str, Any]:
    """On a rank: each layout's weights before and after."""
    return {name: _restate(ranks, name) for name in LAYOUTS}


@contextmanager
def _engine(ranks: Ranks, name: str) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as folder:
        if name == "pipeline":
            with split_engine(ranks, Case(cuts=(13,), channels_last=False), Path(folder)) as engine:
                yield engine
        else:
            further = {"frozen": {"freeze": 5}, "sync_bn": {"sync_bn": True}}.get(name, {})
            hyper = {"weights": seasoned_weights(), "channels_last": False, **further}
            with small_engine(
                ranks, name if name in LAYOUTS[:2] else "zero2_fp32", **hyper
            ) as small:
                yield small.engine


def _restate(ranks: Ranks, name: str) -> dict[str, Any]:
    with _engine(ranks, name) as engine:
        before = dict(engine.weights())
        engine.deepspeed.eval()
        engine.restate_statistics(_passes(engine))
        norms = [norm for norm in engine.net.modules() if isinstance(norm, nn.BatchNorm2d)]
        trains = any(norm.training for norm in norms)
        assert (name == "sync_bn") == all(isinstance(norm, SyncBatchNormFloat32) for norm in norms)
        return {"before": before, "after": dict(engine.weights()), "trains": trains}


def _passes(engine: Engine) -> Iterator[tuple[Tensor | None, int]]:
    share = engine.share
    for first in range(0, BATCHES, share.dp_size):
        number = first + share.dp_rank
        images = micro_batch(number)["img"] if number < BATCHES else micro_batch(99)["img"][:1]
        yield (images if share.first_stage else None), len(images) if number < BATCHES else 0


@torch.no_grad()
def expected(weights: Weights, frozen: int = 0) -> Weights:
    """The statistics of ultralytics' model of these weights, from what enters each BatchNorm."""
    net = plain_model(weights).eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, norm in net.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and int(name.split(".")[1]) >= frozen:
            norm.train()
            norm.register_forward_pre_hook(
                lambda _, given, name=name: seen.setdefault(name, []).append(_moments(*given))
            )
    for number in range(BATCHES):
        net(micro_batch(number)["img"].float() / 255)
    found = {}
    for name, moments in seen.items():
        means = torch.stack([mean for mean, _ in moments])
        squares = torch.stack([variance + mean.square() for mean, variance in moments]).mean(0)
        found[f"{name}.running_mean"] = means.mean(0)
        found[f"{name}.running_var"] = squares - means.mean(0).square()
    return found


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance per channel, fp64."""
    values = images.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.var(1)


@pytest.fixture(scope="module")
def measured(seasoned: None) -> dict[int, list[dict[str, Any]]]:
    return on_ranks("tests.parity.test_precise:measure", (2,), timeout=120)


@pytest.mark.parametrize("name", LAYOUTS)
def test_statistics_are_those_of_all_images_that_count(
    measured: dict[int, list[dict[str, Any]]], name: str
) -> None:
    report = measured[2][0][name]
    after, before = report["after"], report["before"]
    wanted = expected(before, frozen=5 if name == "frozen" else 0)
    apart, where = worst(distances({key: after[key] for key in wanted}, wanted))
    assert apart < 1e-5, where
    assert worst(distances({key: before[key] for key in wanted}, wanted))[0] > 0.01, (
        "they were so before"
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_else_changes(measured: dict[int, list[dict[str, Any]]], name: str) -> None:
    report = measured[2][0][name]
    before, after = report["before"], report["after"]
    restated = expected(before, frozen=5 if name == "frozen" else 0)
    others = before.keys() - restated.keys()
    assert others and all(torch.equal(before[key], after[key]) for key in others)
    assert not any(rank[name]["trains"] for rank in measured[2])
    if name == "frozen":
        assert any(key in others for key in floating_buffers(plain_model()))
