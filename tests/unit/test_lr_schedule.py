"""Steps, rates and momentum at literal points. That whole runs follow ultralytics' loop is shown in
tests/parity."""

import math
from itertools import pairwise

import pytest

from yolods.optim.lr_schedule import Schedule


def schedule(**changes) -> Schedule:
    values = {
        "samples": 128,
        "batch": 16,
        "epochs": 10,
        "accumulation": 4,
        "ramp": True,
        "lr0": 0.01,
        "lrf": 0.01,
        "cos_lr": False,
        "momentum": 0.9,
        "warmup_epochs": 3.0,
        "warmup_momentum": 0.8,
        "warmup_bias_lr": 0.1,
    }
    return Schedule(**{**values, **changes})


def test_warmup_in_batches():
    assert schedule().warmup_batches == 24
    assert schedule(samples=120).warmup_batches == 22  # 7.5 batches an epoch, which are 22.5
    assert schedule(warmup_epochs=0.5).warmup_batches == 4
    assert schedule(warmup_epochs=0).warmup_batches == 0
    assert schedule(epochs=2).warmup_batches == 8  # the last epoch is left out
    assert schedule(epochs=1).warmup_batches == 0


@pytest.mark.parametrize(("samples", "epochs"), [(5, 100), (17, 30), (100, 10), (120, 4)])
def test_warmup_does_not_outlast_its_epochs_where_batches_cross_them(samples, epochs):
    """Five images in batches of 16 were warmed up over three batches, which is over nine epochs."""
    plan = schedule(samples=samples, epochs=epochs)
    assert abs(plan.warmup_batches * plan.batch - 3 * samples) <= plan.batch / 2


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (1, 0.901), (5, 0.505), (9, 0.109), (10, 0.01), (11, 0.01)]
)
def test_linear_decay(epoch, factor):
    assert schedule().decay(epoch) == pytest.approx(factor)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1.0), (5, 0.505), (10, 0.01)])
def test_cosine_decay(epoch, factor):
    assert schedule(cos_lr=True).decay(epoch) == pytest.approx(factor)


@pytest.mark.parametrize("epochs", [3, 100])
def test_decays_are_ultralytics(epochs):
    """engine/trainer.py, `_setup_scheduler`."""
    from ultralytics.utils.torch_utils import one_cycle

    cosine, line = schedule(epochs=epochs, cos_lr=True), schedule(epochs=epochs)
    for epoch in range(epochs):
        assert cosine.decay(epoch) == pytest.approx(one_cycle(1, 0.01, epochs)(epoch))
        assert line.decay(epoch) == pytest.approx(max(1 - epoch / epochs, 0) * (1.0 - 0.01) + 0.01)


def test_the_first_step_stands_still_but_for_biases():
    step = schedule().step_at(0)
    assert (step.first_batch, step.batches, step.epoch) == (0, 1, 0)
    assert step.lr == pytest.approx((0.0, 0.0, 0.1))
    assert step.momentum == pytest.approx(0.8)


def test_half_way_through_warmup():
    """Accumulation at batch b is round(1 + 3 b / 24): 2 at 12, 3 at 13 and 14, so that batch 14
    ends the step."""
    step = schedule().step_at(12 * 16)
    assert (step.first_batch, step.batches, step.end_batch, step.epoch) == (12, 3, 15, 1)
    target = 0.01 * (1 - 0.99 * 0.1)
    weight = target * 14 / 24
    assert step.lr == pytest.approx((weight, weight, 0.1 + (target - 0.1) * 14 / 24))
    assert step.momentum == pytest.approx(0.8 + 0.1 * 14 / 24)


def test_warmup_lands_on_its_targets():
    schedule_ = schedule()
    step = schedule_.step_at(21 * 16)
    assert (step.first_batch, step.batches) == (21, 4)
    assert step.lr == pytest.approx((0.01 * schedule_.decay(3),) * 3)
    assert step.momentum == pytest.approx(0.9)


def test_after_warmup():
    step = schedule().step_at(64 * 16)
    assert (step.batches, step.epoch) == (4, 8)
    assert step.lr == pytest.approx((0.01 * (1 - 0.99 * 0.8),) * 3)
    assert step.momentum == 0.9


def test_an_accumulation_that_was_given_is_kept_during_warmup():
    assert [schedule(ramp=False).step_at(k * 16).batches for k in (0, 4, 8, 60)] == [4, 4, 4, 4]


def test_without_warmup_the_first_step_is_a_full_one():
    step = schedule(warmup_epochs=0).step_at(0)
    assert (step.batches, step.momentum) == (4, 0.9)
    assert step.lr == pytest.approx((0.01, 0.01, 0.01))


@pytest.mark.parametrize("samples", [13, 100, 128])
def test_steps_follow_each_other_without_a_gap(samples):
    plan = schedule(samples=samples, epochs=7)
    position, expected = 0, 0
    while position < plan.total_samples:
        step = plan.step_at(position)
        assert step.first_batch == expected
        assert 1 <= step.batches <= 4
        expected = step.end_batch
        position += step.batches * plan.batch
    assert position - plan.total_samples < 4 * plan.batch


def test_an_epoch_is_each_n_samples_of_the_stream():
    plan = schedule(samples=100)
    assert [plan.epoch_of(batch) for batch in (0, 6, 7, 12, 13, 18, 19)] == [0, 0, 1, 1, 2, 2, 3]
    assert plan.total_samples == 1000


def test_rates_never_jump_by_more_than_a_batch_of_warmup():
    plan, position, rates = schedule(samples=500, epochs=8), 0, []
    while position < plan.total_samples:
        step = plan.step_at(position)
        rates.append(step.lr[0])
        position += step.batches * plan.batch
    assert max(rates) <= 0.01
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.01 * (4 / 96 + 0.99 / 8 + 1e-9)
    assert math.isclose(rates[0], 0.0)


def test_a_run_may_stand_within_a_batch():
    """It has come there with smaller batches."""
    plan = schedule()
    for position in (17, 31):
        assert plan.step_at(position) == plan.step_at(16) != plan.step_at(32)
