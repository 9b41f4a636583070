"""Activation checkpointing under ZeRO 0, 2 and 3: a step of two ranks computes what it computes
when all is kept."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.parity.small import CONFIGS, distances, seasoned_weights, small_engine, worst
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks

STAGES = (0, 2, 3)
"""Stage 1 is the class of stage 2 in DeepSpeed."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def measure(ranks: Ranks) -> dict[int, dict[str, Any]]:
    """On a rank: two steps with the block and two without, under each stage."""
    return {stage: _compare(ranks, stage) for stage in STAGES}


def _compare(ranks: Ranks, stage: int) -> dict[str, Any]:
    raw = json.loads((CONFIGS / f"zero{stage}_fp32.json").read_text())
    kept, again = (
        _steps(ranks, stage, each) for each in (raw, {**raw, "activation_checkpointing": {}})
    )
    weights = None if not kept["weights"] else worst(distances(again["weights"], kept["weights"]))
    return {
        "losses": (again["losses"], kept["losses"]),
        "gradients": worst(distances(again["gradients"], kept["gradients"])),
        "weights": weights,
        "said": again["net"],
    }


def _steps(ranks: Ranks, stage: int, raw: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"zero{stage}_fp32.json")
        file.write_text(json.dumps(raw))
        with small_engine(ranks, file, weights=seasoned_weights(), channels_last=False) as small:
            first = small.step(keep_gradients=True)
            gradients = dict(small.gradients)
            second = small.step(1)
            losses = [first.loss, second.loss]
            weights = dict(small.engine.weights())
            return {
                "losses": losses,
                "gradients": gradients,
                "weights": weights,
                "net": type(small.engine.net).__name__,
            }


@pytest.fixture(scope="module")
def measured(seasoned: None) -> list[dict[int, dict[str, Any]]]:
    return on_ranks("tests.parity.test_recompute:measure", (2,), timeout=150)[2]


@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_activations_change_no_number(measured, stage):
    for rank in measured:
        report = rank[stage]
        assert report["said"] == "RecomputedDetector"
        for again, kept in zip(*report["losses"], strict=True):
            assert again == pytest.approx(kept, rel=1e-6)
        largest, name = report["gradients"]
        assert largest < 1e-6, name
    largest, name = measured[0][stage]["weights"]
    assert largest < 1e-6, name
