"""A run's memory is compared with the plan's once, when it has taken enough steps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.test_deepspeed_pipeline import configured
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.plan.layout import layout_of, undescribed
from yolods.plan.memory.boxes import box_counts
from yolods.plan.memory.predict import MemoryModel
from yolods.plan.partition import MIB
from yolods.telemetry import Telemetry
from yolods.training import memory_check
from yolods.training.memory_check import (
    FEWEST,
    MEASURED_CURVE,
    PREDICTED_CURVE,
    STEPS,
    MemoryCheck,
    MemoryMeter,
    memory_line,
    predicted_ranks,
)


class Told(Telemetry):
    """Keeps the events."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bool]] = []

    def event(self, kind: str, text: str, *, warn: bool = False) -> None:
        """See the base class."""
        assert kind == "memory"
        self.lines.append((text, warn))


def _check(told_to: Told, stages: tuple[int, ...] = (100 * MIB, 50 * MIB)) -> MemoryCheck:
    peaks = [(0, 101 * MIB), (1, 49 * MIB)]
    ranks = SimpleNamespace(is_main=True, device=torch.device("cuda"), to_main=lambda mine: peaks)
    meter = SimpleNamespace(restart=lambda: None, peak=lambda: 101 * MIB)
    return MemoryCheck(meter, ranks, 0, lambda: stages, told_to)


def test_a_run_is_compared_once() -> None:
    heard = Told()
    check, curves = _check(heard), [{} for _ in range(2 * STEPS)]
    for scalars in curves:
        check.step(scalars, epoch_ends=False)
    ((line, warned),) = heard.lines
    assert "rank 0 101, predicted 100; rank 1 49, predicted 50" in line
    assert not warned
    assert [each for each in curves if each] == [{PREDICTED_CURVE: 100.0, MEASURED_CURVE: 101.0}]
    assert curves[STEPS - 1]


def test_a_short_epoch_suffices_and_a_very_short_one_does_not() -> None:
    for steps, lines in ((FEWEST, 1), (FEWEST - 1, 0)):
        heard = Told()
        check = _check(heard)
        for step in range(2 * STEPS):
            check.step({}, epoch_ends=(step + 1) % steps == 0)
        assert len(heard.lines) == lines


def test_a_layout_that_is_not_covered_is_not_compared() -> None:
    heard, curves = Told(), dict[str, Any]()
    check = _check(heard, ())
    for _ in range(STEPS):
        check.step(curves, epoch_ends=False)
    assert not heard.lines and not curves


@pytest.mark.parametrize(
    ("kind", "mib", "differs"),
    [("cuda", 115, True), ("cuda", 105, False), ("cpu", 600, False), ("cpu", 80, True)],
)
def test_a_difference_is_told(kind: str, mib: int, differs: bool) -> None:
    """On a CPU, libraries may have more, but tensors need what they need."""
    line, found = memory_line([(100 * MIB, mib * MIB)], kind)
    assert found is differs is ("differ" in line)


def test_a_cpu_s_peak_is_the_growth_since_the_meter_was_made() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    meter.restart()
    torch.ones(64 * MIB // 4)  # is freed at once, and counts all the same
    assert 60 * MIB < meter.peak() < 200 * MIB


def test_what_a_layout_does_not_describe(tmp_path: Path) -> None:
    batch = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2}
    plain = {**batch, "zero_optimization": {"stage": 3, "reduce_bucket_size": 10}}
    assert undescribed(configured(tmp_path, plain, 2)) == ()
    far = {**batch, "zero_optimization": {"stage": 3, "stage3_max_live_parameters": 10}}
    assert undescribed(configured(tmp_path, far, 2)) == ("stage3_max_live_parameters",)
    assert undescribed(configured(tmp_path, plain, 2, "--freeze", "3")) == ("freeze",)
    sent = {**batch, "yolods": {"compression": {"kind": "powersgd"}}}
    assert "compression" in undescribed(configured(tmp_path, sent, 2))


@pytest.mark.slow  # it traces the model
def test_every_stage_has_a_prediction_and_an_uncovered_layout_none(tmp_path: Path) -> None:
    blueprint = Blueprint(architecture(parse_name("yolov5n"), 3, 3), ("a", "b", "c"), seed=0)
    box = np.array([[0, 0.5, 0.5, 0.1, 0.1], [1, 0.5, 0.5, 0.3, 0.3]], np.float32)
    labels = SimpleNamespace(counts=np.array([1, 1]), index=SimpleNamespace(columns={"box": box}))
    batch = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}

    def predicted(content: dict[str, Any], cuts: tuple[int, ...], *words: str) -> tuple[int, ...]:
        config = configured(tmp_path, {**batch, **content}, 2, "--imgsz", "64", *words)
        return predicted_ranks(config, blueprint, labels, "SGD", cuts, "cuda")

    stages = predicted({"pipeline": {"stages": 2}}, (20,))
    assert len(stages) == 2 and min(stages) > 0
    assert predicted({"pipeline": {"stages": 2}}, (20,), "--freeze", "3") == ()


@pytest.mark.slow  # it traces the model
def test_a_gpus_prediction_is_the_plans(tmp_path: Path) -> None:
    blueprint = Blueprint(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"), seed=0)
    config = configured(tmp_path, {"zero_optimization": {"stage": 1}}, 2, "--imgsz", "64")
    (found,) = predicted_ranks(config, blueprint, _labels(3, 1), "AdamW", (), "cuda")
    counts = box_counts(np.array([3, 1]), np.full(4, 0.01), config.hyper.mosaic)
    (rank,) = MemoryModel(blueprint, boxes=counts, optimizer="AdamW").ranks(layout_of(config))
    assert found == rank.device - rank.reserve and 0 < rank.reserve < found


def test_a_fault_of_the_prediction_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def faulty(blueprint: object, *, boxes: Any, optimizer: str, device: str) -> None:
        seen.append((boxes.most, optimizer))
        raise KeyError("an operator")

    monkeypatch.setattr(memory_check, "MemoryModel", faulty)
    config = configured(tmp_path, {}, 2, "--imgsz", "64")
    assert predicted_ranks(config, None, _labels(3, 1), "Adam", (), "cuda") == ()
    assert seen == [(3 + 3 * 2, "Adam")], "a mosaic: the fullest image and three means"
    assert "the plan does not know this run's memory" in caplog.text


def test_a_run_that_compresses_gradients_is_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was not sent takes memory of which a layout knows nothing."""
    packed = {"yolods": {"compression": {"kind": "powersgd"}}}
    config = configured(tmp_path, packed, 2, "--imgsz", "64")
    assert predicted_ranks(config, None, _labels(3, 1), "Adam", (), "cuda") == ()
    assert caplog.messages == [], "it was not tried"


def _labels(*counts: int) -> SimpleNamespace:
    """Labels of images with so many boxes of a tenth of the sides."""
    box = np.tile(np.array([0, 0.5, 0.5, 0.1, 0.1]), (sum(counts), 1))
    return SimpleNamespace(counts=np.array(counts), index=SimpleNamespace(columns={"box": box}))
