"""Verdicts on sequences of readings."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from yolods.config.deepspeed.yolods_block import OverflowConfig
from yolods.stability.grad_stats import GradStats
from yolods.stability.guard import Guard, Verdict

NAMES = ("model.0.conv.weight", "model.1.conv.weight", "model.2.conv.weight")


def grad_stats(*norms: float, loss: float = 3.0) -> GradStats:
    return GradStats(NAMES, np.array(norms or (1.0, 1.0, 1.0)), None, (loss, 0.0, 0.0), 4, 1.0)


def guard(**settings: float) -> Guard:
    return Guard(OverflowConfig(**settings), len(NAMES))


def usual(watch: Guard, steps: int = 60, seed: int = 0) -> list[Verdict]:
    rng = np.random.RandomState(seed)
    return [
        watch.judge(
            grad_stats(*rng.lognormal(0, 0.5, 3), loss=float(rng.lognormal(1, 0.2))),
            scale_can_fall=True,
            can_return=True,
        )
        for _ in range(steps)
    ]


def test_ordinary_steps_are_applied() -> None:
    watch = guard()
    assert all(verdict.applied and not verdict.vanished for verdict in usual(watch, 10_000))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_an_overflow_while_the_scale_can_fall(bad: float) -> None:
    watch = guard()
    found = watch.judge(grad_stats(1.0, bad, 1.0), scale_can_fall=True, can_return=True)
    assert (found.action, found.cause, found.suspects) == ("skip", "overflow", (1,))
    found = watch.judge(grad_stats(1.0, bad, bad), scale_can_fall=False, can_return=True)
    assert (found.action, found.cause, found.suspects) == ("skip", "backward", (1, 2))


def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale() -> None:
    found = guard().judge(
        grad_stats(math.nan, math.nan, math.nan, loss=math.nan),
        scale_can_fall=True,
        can_return=True,
    )
    assert (found.action, found.cause) == ("skip", "forward")


def test_overflows_that_a_smaller_scale_mends_never_end_a_run() -> None:
    watch = guard(patience=2)
    found = [
        watch.judge(grad_stats(1.0, math.inf, 1.0), scale_can_fall=True, can_return=True).action
        for _ in range(40)
    ]
    assert set(found) == {"skip"}


def test_bad_steps_in_a_row_lead_back_and_at_last_to_a_stop() -> None:
    watch = guard(patience=3, max_rollbacks=2)
    actions = [
        watch.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
        for _ in range(9)
    ]
    assert actions == [
        "skip",
        "skip",
        "rollback",
        "skip",
        "skip",
        "rollback",
        "skip",
        "skip",
        "stop",
    ]


def test_a_good_step_breaks_the_row() -> None:
    watch = guard(patience=3)
    for _ in range(4):
        assert (
            watch.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
            == "skip"
        )
        assert (
            watch.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
            == "skip"
        )
        assert watch.judge(grad_stats(), scale_can_fall=False, can_return=True).applied


def test_good_steps_wipe_out_earlier_roll_backs() -> None:
    watch = guard(patience=1, max_rollbacks=1, snapshot_steps=5, warmup_steps=5)
    for _ in range(4):
        assert (
            watch.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
            == "rollback"
        )
        for _ in range(5):
            assert watch.judge(grad_stats(), scale_can_fall=False, can_return=True).applied
    assert (
        watch.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
        == "rollback"
    )
    assert (
        watch.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
        == "stop"
    )


def test_without_a_snapshot_patience_ends_the_run() -> None:
    """There is none with snapshot_steps 0, and none before the first step that was applied."""
    watch = guard(patience=2)
    actions = [
        watch.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=False).action
        for _ in range(2)
    ]
    assert actions == ["skip", "stop"]


def test_a_gradient_spike_is_skipped_and_its_layers_are_suspected() -> None:
    watch = guard()
    usual(watch)
    found = watch.judge(grad_stats(1e4, 2e4, 1.0), scale_can_fall=False, can_return=True)
    assert (found.action, found.cause, found.suspects) == ("skip", "gradient_spike", (0, 1))
    assert found.usual == pytest.approx(math.sqrt(3), rel=1.0)


def test_a_loss_spike_is_skipped() -> None:
    watch = guard()
    usual(watch)
    found = watch.judge(grad_stats(loss=1e3), scale_can_fall=False, can_return=True)
    assert (found.action, found.cause) == ("skip", "loss_spike")


def test_nothing_is_a_spike_before_the_guard_has_seen_enough() -> None:
    watch = guard(warmup_steps=50)
    usual(watch, 49)
    assert watch.judge(grad_stats(1e4, 1.0, 1.0), scale_can_fall=False, can_return=True).applied


def test_spikes_that_stay_are_the_new_level() -> None:
    watch = guard(patience=4)
    usual(watch)
    actions = [
        watch.judge(grad_stats(1e4, 1e4, 1e4), scale_can_fall=False, can_return=True).action
        for _ in range(10)
    ]
    assert actions == ["skip"] * 4 + ["apply"] * 6


def test_a_loss_that_stays_away_leads_back() -> None:
    watch = guard(patience=4)
    usual(watch)
    actions = [
        watch.judge(grad_stats(loss=1e3), scale_can_fall=False, can_return=True).action
        for _ in range(4)
    ]
    assert actions == ["skip"] * 3 + ["rollback"]


def test_vanished_gradients_are_told_once_until_they_recover() -> None:
    watch = guard(vanishing=1e-8, vanishing_steps=10)
    told = [
        watch.judge(grad_stats(1.0, 1e-12, 1.0), scale_can_fall=False, can_return=True).vanished
        for _ in range(30)
    ]
    assert [place for place, found in enumerate(told) if found] == [9]
    assert told[9] == (1,)
    watch.judge(grad_stats(), scale_can_fall=False, can_return=True)
    told = [
        watch.judge(grad_stats(1.0, 0.0, 1.0), scale_can_fall=False, can_return=True).vanished
        for _ in range(12)
    ]
    assert [place for place, found in enumerate(told) if found] == [9]


def test_what_it_remembers_carries_it_on_under_another_order_of_parameters() -> None:
    first = guard(patience=3)
    usual(first)
    first.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True)
    state = json.loads(json.dumps(first.state()))
    second = Guard(OverflowConfig(patience=3), len(NAMES))
    second.load(state, [2, 0, 1])
    mine = first.judge(grad_stats(1e4, 1.0, 1.0), scale_can_fall=False, can_return=True)
    other = second.judge(grad_stats(1.0, 1e4, 1.0), scale_can_fall=False, can_return=True)
    assert (mine.action, mine.cause, mine.suspects) == ("skip", "gradient_spike", (0,))
    assert (other.action, other.cause, other.suspects) == ("skip", "gradient_spike", (1,))
    assert (
        first.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
        == "rollback"
    )
    assert (
        second.judge(grad_stats(loss=math.nan), scale_can_fall=False, can_return=True).action
        == "rollback"
    )
