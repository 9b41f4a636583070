"""Clipping under every ZeRO stage: the step that the weights take is the plain model's, cut by the
formula itself.

The pipeline's clipped step is held to the same in test_pipeline.py.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.small import (
    ACCUMULATION,
    CONFIGS,
    micro_batch,
    plain_loss,
    plain_model,
    small_engine,
)
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step

STAGES = (0, 1, 2, 3)
POLICIES = ("global_norm", "adaptive", "value")
RANKS = 2
MAX_NORM, RATIO, LIMIT = 10.0, 0.01, 0.05
RATE, MOMENTUM = 100.0, 0.937
"""A step so large that the weights' own rounding vanishes beside it."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(160)]


def measure(ranks: Ranks) -> dict[tuple[str, int], dict[str, float]]:
    """On a rank: how far each policy's step is from the formula, under each stage."""
    start, gradients = _plain_gradients(ranks.size)
    return {
        (policy, stage): _compare(ranks, policy, stage, start, gradients)
        for policy in POLICIES
        for stage in STAGES
    }


def _plain_gradients(ranks: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    net = plain_model()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    for number in range(ACCUMULATION * ranks):
        plain_loss(net, micro_batch(number))[0].backward()
    return start, {name: each.grad for name, each in net.named_parameters() if each.requires_grad}


def _clipped(
    policy: str, weights: dict[str, Tensor], gradients: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The formulas of docs/stability.md, on whole tensors."""
    if policy == "value":
        return {name: gradient.clamp(-LIMIT, LIMIT) for name, gradient in gradients.items()}
    norm = torch.cat([each.flatten() for each in gradients.values()]).double().norm()
    common = min(1.0, MAX_NORM / (float(norm) + 1e-6))
    factors = dict.fromkeys(gradients, common)
    if policy == "adaptive":
        for name, gradient in gradients.items():
            if name.endswith("weight") and ".bn." not in name:
                allowed = RATIO * max(float(weights[name].double().norm()), 1e-3)
                factors[name] = min(1.0, allowed / max(float(gradient.double().norm()), 1e-300))
    return {name: gradient * factors[name] for name, gradient in gradients.items()}


def _compare(
    ranks: Ranks, policy: str, stage: int, start: dict[str, Tensor], gradients: dict[str, Tensor]
) -> dict[str, float]:
    settings: dict[str, Any] = json.loads(
        (CONFIGS / f"zero{stage}_fp32.json").read_text(encoding="utf-8")
    )
    if policy == "value":
        del settings["gradient_clipping"]
    settings["yolods"] = {"clipping": {"policy": policy, "ratio": RATIO, "limit": LIMIT}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ds.json"
        file.write_text(json.dumps(settings), encoding="utf-8")
        with small_engine(
            ranks, file, optimizer="SGD", weight_decay=0, channels_last=False
        ) as small:
            mine = [micro_batch(place * ranks.size + ranks.rank) for place in range(ACCUMULATION)]
            result = small.engine.train_step(
                Step(0, ACCUMULATION, 0, (RATE, RATE, RATE), MOMENTUM), iter(mine)
            )
            end = dict(small.engine.weights())
    if not end:  # on the other rank
        return {}
    wanted = _clipped(policy, start, gradients)
    # The first step of Nesterov's momentum.
    moved = {name: (start[name] - end[name]).double() / (RATE * (1 + MOMENTUM)) for name in wanted}
    apart = torch.cat([(moved[name] - value.double()).flatten() for name, value in wanted.items()])
    size = torch.cat([value.flatten() for value in wanted.values()]).double().norm()
    cut = float(size / torch.cat([value.flatten() for value in gradients.values()]).double().norm())
    assert result.grad_norm is not None
    assert result.norm_after is not None
    return {
        "apart": float(apart.norm() / size),
        "cut": cut,
        "told": result.norm_after / float(size),
    }


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int], dict[str, float]]:
    return on_ranks("tests.parity.test_clipping:measure", (RANKS,), timeout=140)[RANKS][0]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_step_is_the_formulas(
    measured: dict[tuple[str, int], dict[str, float]], policy: str, stage: int
) -> None:
    found = measured[policy, stage]
    assert found["cut"] < 0.9, "nothing was clipped, so that it shows nothing about clipping"
    assert found["apart"] < 1e-5
    if policy != "value":  # which only bounds the norm that is told
        assert found["told"] == pytest.approx(1.0, rel=1e-5)
