"""What a person sees who opens TensorBoard on a run, read from the page in a browser."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from benchmarks.browser import find_browser, page, tensorboard_on, why_no_browser
from yolods.stability.grad_stats import GradStats
from yolods.stability.record import StepRecord
from yolods.stats import (
    LOSS_NAMES,
    METRIC_NAMES,
    EpochStats,
    LoaderStats,
    PipeStats,
    StabilityEvent,
    StageStats,
)
from yolods.telemetry.run import RunTelemetry

pytestmark = [pytest.mark.slow, pytest.mark.process]

GROUPS = ["Loss", "Metrics", "by_images", "communication", "data", "final", "gradients", "memory"]
GROUPS += ["optimizer", "pipeline", "ranks", "stability"]
_GROUP = re.compile(r'class="group-title" title="([^"]*)".*?icon-name="expand_(less|more)_', re.S)
"""A group's title, and whether its button shows less (it is open) or more."""


def _step(telemetry: RunTelemetry, step: int) -> None:
    norms = np.full(2, 1.0 / step)
    record = StepRecord(
        loss=dict.fromkeys(LOSS_NAMES, 4.0 / step),
        grad_norm=2.0,
        norm_after=1.0,
        loss_scale=1024.0,
        instances=9,
        data_seconds=0.01,
        scalars={"lr/pg0": 0.01, "optim/momentum": 0.9, "communication/sent_mb": 55.0},
        grad_stats=GradStats(
            ("model.0.conv.weight", "model.9.conv.weight"), norms, None, (1.0,), 9, 1.0
        ),
    )
    telemetry.step(
        record.placed(step=step, epoch=0, position=4 * step, samples=4, imgsz=64, seconds=0.1)
    )


def _event(step: int) -> StabilityEvent:
    return StabilityEvent(
        step=step,
        epoch=0,
        position=4 * step,
        action="skip",
        cause="overflow",
        loss=math.inf,
        grad_norm=math.inf,
        usual=None,
        loss_scale=2048.0,
        parameters=("model.9.conv.weight",),
        culprits=(),
        remedy="loss scale 2048 -> 1024",
    )


def _leave_run(folder: Path) -> None:
    """The calls of a short run on two ranks, and what telemetry leaves of them."""
    with RunTelemetry(
        folder, names={0: "a"}, epochs=2, images_per_epoch=8, batch_size=4, plots=False
    ) as telemetry:
        telemetry.start({"epochs": 2}, "| layer |", ["2 ranks on cpu, ZeRO-1"], {"zero_stage": 1})
        for epoch in range(2):
            telemetry.epoch_begin(epoch)
            _step(telemetry, 2 * epoch + 1)
            _step(telemetry, 2 * epoch + 2)
            telemetry.stability(_event(2 * epoch + 2))
            stages = tuple(
                StageStats(stage=stage, forward=0.1, backward=0.2, idle=0.3, sent=1.0, peak=1.0)
                for stage in range(2)
            )
            telemetry.pipeline(PipeStats(stages=stages, idle=0.3, bound=0.2))
            telemetry.ranks({0: 0.1, 1: 0.2})
            telemetry.memory({0: 2**30, 1: 2**30})
            telemetry.epoch_end(_epoch(epoch))
        telemetry.finish(dict.fromkeys(METRIC_NAMES, 0.5), 60.0)


def _answer(address: str, body: bytes | None = None) -> Any:
    asked = Request(address, body, {"Content-Type": "application/json"})
    with urlopen(asked, timeout=30) as answer:
        return json.load(answer)


def _epoch(epoch: int) -> EpochStats:
    return EpochStats(
        epoch=epoch,
        position=8 * (epoch + 1),
        seconds=1.0,
        train_loss=dict.fromkeys(LOSS_NAMES, 1.0),
        val_loss=dict.fromkeys(LOSS_NAMES, 1.0),
        metrics=dict.fromkeys(METRIC_NAMES, 0.5),
        fitness=0.5,
        lr={"lr/pg0": 0.01},
        images_per_second=40.0,
        is_best=True,
        loader=LoaderStats(images_per_second=100.0, decode_share=0.5, wait_share=0.1),
    )


@pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))
def test_what_people_look_for_is_on_top_and_open(tmp_path: Path) -> None:
    browser, profile = str(find_browser()), tmp_path / "profile"
    _leave_run(tmp_path / "runs" / "exp")
    with tensorboard_on(tmp_path / "runs", tmp_path / "log") as address:
        series = page(browser, f"{address}#timeseries", profile)
        # By what these tabs ask for: their shadow trees are not in a page's document.
        layout = _answer(f"{address}data/plugin/custom_scalars/layout")
        compared = _answer(f"{address}data/plugin/hparams/experiment", b'{"experimentName": ""}')
    groups = _GROUP.findall(series)
    assert [title for title, _ in groups] == GROUPS
    assert [title for title, button in groups if button == "less"] == ["Loss", "Metrics"]
    cards = re.findall(r'title="(Loss/[^"]*)"', series)
    assert {"Loss/box_train", "Loss/box_val"} <= set(cards)
    categories = [category["title"] for category in layout["category"]]
    assert categories[:3] == ["Training", "By images", "Ranks"]
    assert categories[3:] == ["Communication", "Pipeline", "Optimizer", "Data"]
    assert [info["name"] for info in compared["hparamInfos"]] == ["zero_stage"]
    metrics = [info["name"]["tag"] for info in compared["metricInfos"]]
    assert set(metrics) == {
        f"final/{name}" for name in ("precision", "recall", "mAP50", "mAP50-95")
    }
