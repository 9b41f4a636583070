"""bf16 and bf16 autocast against a plain fp32 ultralytics model at equal weights: close, with BatchNorm whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parity.small import (
    ACCUMULATION,
    distance,
    distances,
    floating_buffers,
    micro_batch,
    plain_loss,
    plain_model,
    plain_statistics,
    seasoned_weights,
    small_engine,
    worst,
)
from tests.ranks import on_ranks
from yolods.cluster.ranks import Ranks

pytestmark = pytest.mark.slow

PARAMETERS = {
    "zero0_bf16_autocast": torch.float32,
    "zero1_bf16": torch.bfloat16,
    "zero2_bf16_autocast": torch.float32,
    "zero3_bf16": torch.bfloat16,
}
"""Files of ds_configs/, and the type that parameters have under each."""

Report = dict[str, Any]


def measure(ranks: Ranks) -> dict[str, Report]:
    """On a rank: one step under each configuration beside one in fp32."""
    weights = seasoned_weights()
    net = plain_model(weights)
    items = []
    for number in range(ACCUMULATION * ranks.size):
        loss, shown = plain_loss(net, micro_batch(number))
        loss.backward()
        items.append(shown)
    gradients = {name: each.grad for name, each in net.named_parameters() if each.requires_grad}
    statistics = plain_statistics(ranks.size, weights)
    found = {}
    for config in PARAMETERS:
        with small_engine(ranks, config, weights=weights, optimizer="SGD") as small:
            result = small.step(keep_gradients=True)
            small.engine.average_statistics()
            buffers = floating_buffers(small.engine.net)
            mine, theirs = (
                torch.cat([each[name].flatten() for name in gradients]) for each in (small.gradients, gradients)
            )
            found[config] = {
                "loss": distance(torch.tensor(list(result.loss.values())), torch.tensor(items).mean(0)),
                "cosine": float(torch.cosine_similarity(mine.double(), theirs.double(), dim=0)),
                "length": float(mine.norm() / theirs.norm()),
                "parameters": {each.dtype for each in small.engine.net.parameters()},
                "buffers": {each.dtype for each in buffers.values()},
                "finite": all(bool(each.isfinite().all()) for each in buffers.values()),
                "statistics": distances(buffers, statistics),
            }
    return found


@pytest.fixture(scope="module")
def measured(seasoned: None) -> list[dict[str, Report]]:
    return on_ranks("tests.parity.test_precision:measure", (2,), timeout=120)[2]


@pytest.fixture(params=PARAMETERS)
def config(request: pytest.FixtureRequest) -> str:
    return request.param


def test_loss_and_gradient_are_close_to_fp32(measured: list[dict[str, Report]], config: str) -> None:
    for report in (rank[config] for rank in measured):
        assert report["loss"] < 0.01
        assert report["cosine"] > 0.999
        assert report["length"] == pytest.approx(1, abs=0.03)
        assert report["loss"] > 0, "nothing was rounded: this was fp32"


def test_batchnorm_keeps_its_statistics_in_fp32(measured: list[dict[str, Report]], config: str) -> None:
    for report in (rank[config] for rank in measured):
        assert report["parameters"] == {PARAMETERS[config]}
        assert report["buffers"] == {torch.float32}
        assert report["finite"]
        largest, name = worst(report["statistics"])
        assert largest < 0.01, name
