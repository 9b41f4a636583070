"""The loss scale, beside DeepSpeed's own where that is right."""

from __future__ import annotations

import pickle
import random

import pytest
import torch

from yolods.zero.loss_scale import LossScale, ScaleRules


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("hysteresis", [1, 2, 4])
def test_it_moves_as_deepspeeds_does(
    hysteresis: int, consecutive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same overflows, as long as neither end is reached."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    monkeypatch.setattr(
        "deepspeed.runtime.fp16.loss_scaler.dist.get_rank", lambda: 1
    )  # which speaks to nobody
    stock = DynamicLossScaler(2.0**40, 7, 1, hysteresis, consecutive)
    mine = LossScale(ScaleRules(2.0**40, 7, hysteresis, consecutive, 1.0, 2.0**80))
    draw = random.Random(0)
    for _ in range(300):
        overflow = draw.random() < 0.15
        stock.update_scale(overflow)
        mine.after_step(overflow)
        assert mine.cur_scale == stock.cur_scale


def test_it_stands_still_until_the_step_is_over() -> None:
    scale = LossScale(ScaleRules(initial=8.0, window=1))
    scale.after_step(False)
    scale.update_scale(False)  # DeepSpeed, before it unscales
    assert scale.loss_scale == 8.0
    scale.after_step(False)
    assert scale.loss_scale == 16.0


def test_at_the_floor_it_says_so_and_stays() -> None:
    scale = LossScale(ScaleRules(initial=4.0, hysteresis=1, floor=1.0))
    for expected in (2.0, 1.0, 1.0, 1.0):
        scale.after_step(True)
        assert scale.cur_scale == expected
    assert scale.at_floor


def test_it_does_not_grow_past_the_ceiling() -> None:
    scale = LossScale(ScaleRules(initial=4.0, window=1, ceiling=16.0))
    for _ in range(10):
        scale.after_step(False)
    assert scale.cur_scale == 16.0


def test_a_static_scale_never_moves() -> None:
    scale = LossScale(ScaleRules(static=128.0))
    for overflow in (True, False, True):
        scale.after_step(overflow)
    assert scale.cur_scale == 128.0
    assert scale.at_floor, "nothing can give way"
    assert not scale.dynamic


def test_the_loss_is_multiplied() -> None:
    assert float(LossScale(ScaleRules(initial=8.0)).scale_loss(torch.tensor(3.0))) == 24.0


def test_it_is_pickled_and_resumed_in_the_middle_of_hysteresis() -> None:
    scale = LossScale(ScaleRules(initial=64.0, window=3, hysteresis=3))
    for overflow in (True, False, False):
        scale.after_step(overflow)
    copy, resumed = pickle.loads(pickle.dumps(scale)), LossScale(scale.rules)
    resumed.load(scale.state())
    for overflow in (True, True, False, False, False, False, True):
        for each in (scale, copy, resumed):
            each.after_step(overflow)
        assert scale.state() == copy.state() == resumed.state()
