"""For which runs the plan predicts the memory that TensorBoard shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.parsing.command_line import FlagParser
from yolods.plan.layout import layout_of
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.of_run import planned_bytes
from yolods.plan.memory.predict import MemoryModel

BOXES = BoxCounts(5, 9)


@pytest.fixture
def blueprint() -> Blueprint:
    return Blueprint(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"), seed=0)


def config_of(folder: Path, pipeline: str = "") -> RunConfig:
    file = folder / "ds.json"
    file.write_text(f'{{"zero_optimization": {{"stage": 1}}{pipeline}}}')
    parser = FlagParser(prog="yolods train", description="")
    add_train_arguments(parser)
    words = ["--data", "demo", "--model", "yolov5[0.1,0.1]", "--imgsz", "64", "--batch-size", "4"]
    words += ["--deepspeed_config", str(file)]
    return build_run_config(parser.read(words), world_size=2, device="cpu")


def test_a_gpus_prediction_is_the_plans(tmp_path: Path, blueprint: Blueprint) -> None:
    config = config_of(tmp_path)
    (found,) = planned_bytes(config, blueprint, BOXES, "AdamW")
    (rank,) = MemoryModel(blueprint, boxes=BOXES, optimizer="AdamW").ranks(layout_of(config))
    assert found == rank.device - rank.reserve and 0 < rank.reserve < found


def test_a_pipeline_has_none(tmp_path: Path, blueprint: Blueprint) -> None:
    config = config_of(tmp_path, ', "pipeline": {"stages": 2}')
    assert planned_bytes(config, blueprint, BOXES, "SGD") == ()
