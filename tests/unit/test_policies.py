"""Clipping policies against their papers' formulas, on numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from yolods.clipping.policies import WARMUP
from yolods.clipping.policy import POLICIES, Policy, build_policy
from yolods.stability.grad_stats import GradStats

NAMES = ("model.0.conv.weight", "model.0.bn.weight", "model.24.cv2.0.2.bias")


def grad_stats(*norms: float, weights: tuple[float, ...] | None = None) -> GradStats:
    given = None if weights is None else np.array(weights)
    return GradStats(NAMES, np.array(norms), given, (1.0, 1.0, 1.0), 4, 1.0)


def policy(name: str, max_norm: float = 10.0, **settings: float) -> Policy:
    return build_policy(name, settings, max_norm)


@pytest.mark.parametrize("max_norm", [10.0, 5.0, 1.0, 0.0])
def test_the_global_norm_is_cut_as_torch_cuts_it(max_norm: float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for parameter, value in zip(parameters, (3.0, 4.0, 12.0), strict=True):
        parameter.grad = torch.tensor([value, 0.0])
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm else math.inf))
    found = policy("global_norm", max_norm).clip(grad_stats(3.0, 4.0, 12.0))
    assert norm == pytest.approx(13.0)
    assert found.factor == pytest.approx(float(parameters[2].grad[0]) / 12.0, rel=1e-6)
    assert found.norm_after(grad_stats(3.0, 4.0, 12.0)) == pytest.approx(13.0 * found.factor)


def test_none_leaves_everything_as_it_is() -> None:
    found = policy("none").clip(grad_stats(1e6, 1.0, 1.0))
    assert (found.factor, found.factors, found.limit) == (1.0, None, None)


def test_adaptive_goes_by_each_weights_own_norm() -> None:
    found = policy("adaptive", ratio=0.1).clip(grad_stats(3.0, 4.0, 12.0, weights=(6.0, 1.0, 0.0)))
    common = 10.0 / 13.0
    assert found.factors is not None
    assert found.factors.tolist() == pytest.approx([0.1 * 6.0 / 3.0, common, common], rel=1e-6)


def test_adaptive_leaves_small_gradients_and_silent_layers_alone() -> None:
    found = policy("adaptive", ratio=0.1).clip(grad_stats(0.0, 0.1, 0.1, weights=(6.0, 1.0, 0.0)))
    assert found.factors is not None
    assert found.factors.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_value_limits_elements() -> None:
    assert policy("value", limit=0.5).clip(grad_stats(1.0, 1.0, 1.0)).limit == 0.5


@pytest.mark.parametrize("name", ["percentile", "zscore"])
def test_a_policy_with_a_memory_begins_with_the_global_norm(name: str) -> None:
    found = policy(name)
    for _ in range(WARMUP):
        assert found.clip(grad_stats(0.0, 0.0, 40.0)).factor == pytest.approx(0.25, rel=1e-6)


def test_zscore_does_not_take_the_limit_it_began_with_for_the_norm() -> None:
    found = policy("zscore", max_norm=10.0)
    rng = np.random.RandomState(0)
    for _ in range(WARMUP):
        found.clip(grad_stats(0.0, 0.0, float(rng.normal(300.0, 15.0))))
    assert found.state()["mean"] == pytest.approx(300.0, rel=0.05)
    assert found.clip(grad_stats(0.0, 0.0, 300.0)).factor == 1.0


def test_percentile_clips_to_that_of_the_window() -> None:
    found = policy("percentile", percentile=50.0, window=25)
    history = [float(norm) for norm in range(1, 61)]
    for norm in history:
        found.clip(grad_stats(0.0, 0.0, norm))
    after = found.clip(grad_stats(0.0, 0.0, 100.0)).factor * 100.0
    assert after == pytest.approx(float(np.percentile([*history[-25:], 100.0], 50)), rel=1e-6)


def test_zscore_cuts_what_stands_out_and_nothing_else() -> None:
    found = policy("zscore", max_norm=0.0, threshold=2.5, decay=0.97)
    rng, usual = np.random.RandomState(0), []
    for _ in range(200):
        norm = float(rng.normal(10.0, 0.5))
        usual.append(norm)
        found.clip(grad_stats(0.0, 0.0, norm))
    state = found.state()
    assert state["mean"] == pytest.approx(10.0, abs=0.5)
    deviation = math.sqrt(state["variance"])
    assert deviation == pytest.approx(0.5, rel=0.5)
    z = (50.0 - state["mean"]) / deviation
    after = found.clip(grad_stats(0.0, 0.0, 50.0)).factor * 50.0
    assert after == pytest.approx(state["mean"] + 2.5**2 / z * deviation, rel=1e-3)
    # The clipped norm is what it learns from, so that one spike does not make the next one usual.
    assert found.state()["mean"] < 10.5
    assert found.clip(grad_stats(0.0, 0.0, 10.0)).factor == 1.0


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_what_a_policy_remembers_carries_it_on(name: str) -> None:
    rng = np.random.RandomState(1)
    weights = (1.0, 1.0, 1.0)
    first = policy(name)
    for norm in rng.lognormal(1.0, 1.0, 60):
        first.clip(grad_stats(0.1, 0.1, float(norm), weights=weights))
    second = policy(name)
    second.load(first.state())
    for norm in rng.lognormal(1.0, 1.0, 60):
        mine = first.clip(grad_stats(0.1, 0.1, float(norm), weights=weights))
        other = second.clip(grad_stats(0.1, 0.1, float(norm), weights=weights))
        assert mine.norm_after(grad_stats(0.1, 0.1, float(norm))) == other.norm_after(
            grad_stats(0.1, 0.1, float(norm))
        )
