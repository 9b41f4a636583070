"""What rooms report to each other: under ultralytics' names, as plain numbers, and for good."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict

import pytest

from tests.parity.small import plain_model
from yolods.stats import LOSS_NAMES, METRIC_NAMES, EpochStats, PipeStats, StabilityEvent, StageStats

EVENT = StabilityEvent(
    step=3,
    epoch=0,
    position=48,
    action="skip",
    cause="overflow",
    loss=1.5,
    grad_norm=None,
    usual=None,
    loss_scale=1024.0,
    parameters=("model.0.conv.weight",),
    culprits=({"phase": "backward", "rank": 1},),
    remedy="the loss scale is halved",
)


def test_losses_and_metrics_are_called_as_ultralytics_calls_them() -> None:
    """results.csv, best.pt and whoever reads them go by these names."""
    from ultralytics.utils.loss import v8DetectionLoss
    from ultralytics.utils.metrics import DetMetrics

    assert v8DetectionLoss(plain_model()).loss_names == LOSS_NAMES
    assert tuple(DetMetrics({0: "a"}).keys) == METRIC_NAMES


def test_a_report_survives_json() -> None:
    again = json.loads(json.dumps(asdict(EVENT)))
    for key in ("parameters", "culprits"):
        again[key] = tuple(again[key])
    assert StabilityEvent(**again) == EVENT
    stage = StageStats(stage=0, forward=0.1, backward=0.2, idle=0.25, sent=1e6, peak=2e6)
    pipe = PipeStats(stages=(stage,), idle=0.25, bound=0.2, schedule="zb")
    told = json.loads(json.dumps(asdict(pipe)))
    assert (
        PipeStats(
            stages=(StageStats(**told["stages"][0]),),
            idle=told["idle"],
            bound=told["bound"],
            schedule=told["schedule"],
        )
        == pipe
    )


def test_nobody_changes_what_another_has_reported() -> None:
    with pytest.raises(FrozenInstanceError):
        EVENT.step = 4


def test_numbers_are_given_by_name_and_none_is_left_out() -> None:
    """They are many of a kind: two in each other's place would not be noticed."""
    with pytest.raises(TypeError):
        StageStats(0, 0.1, 0.2, 0.25, 1e6, 2e6)
    with pytest.raises(TypeError):
        EpochStats(epoch=0, seconds=1.0)
