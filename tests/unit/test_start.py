"""What a start opens for a run: its telemetry, and the limits of its evaluator."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.indexes import boxes_of
from yolods.data.splits import most_boxes
from yolods.training import start


def split_of(*boxes: int) -> SimpleNamespace:
    return SimpleNamespace(scan=SimpleNamespace(labels=boxes_of(*([0] * n for n in boxes))))


@pytest.mark.parametrize(
    ("limit", "boxes", "expected"),
    [(300, (5, 10), 300), (300, (5, 412), 412), (100, (5, 412), 100), (500, (1,), 500)],
)
def test_the_default_limit_of_boxes_grows_with_the_data(limit, boxes, expected):
    assert most_boxes(limit, split_of(*boxes), split_of(1)) == expected


def test_ultralytics_raises_the_same_limit():
    from ultralytics.models.yolo.detect import DetectionValidator

    args = SimpleNamespace(max_det=300)
    labels = [{"cls": np.zeros((412, 1))}]
    DetectionValidator._check_max_det(args, {"val": SimpleNamespace(labels=labels)})
    assert args.max_det == most_boxes(300, split_of(412))


def schedule_of(samples: int, batch: int, accumulation: int = 4) -> SimpleNamespace:
    return SimpleNamespace(
        samples=samples,
        batch=batch,
        accumulation=accumulation,
        epochs=100,
        total_samples=100 * samples,
    )


def test_rank_0_opens_the_loggers_of_its_run(tmp_path):
    from yolods.config import add_train_arguments, build_run_config

    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    flags = ["--data", "demo", "--imgsz", "64", "--project", str(tmp_path), "--loggers", "jsonl"]
    flags += ["--run-dir", str(tmp_path / "exp"), "--start-id", "s"]
    config = build_run_config(parser.parse_args(flags), world_size=1, device="cpu")
    progress = SimpleNamespace(epochs_done=0, step=0, epoch_ends=())
    ranks = SimpleNamespace(is_main=True)
    with start._open_telemetry(config, ranks, ("a",), schedule_of(32, 16), progress) as telemetry:
        telemetry.start({"a": 1}, "| layer |")
    (line,) = (tmp_path / "exp" / "telemetry.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["start"], told["loggers"], told["epochs"]) == ("s", ["jsonl"], 100)
    ranks.is_main = False
    assert (
        type(start._open_telemetry(config, ranks, ("a",), None, None)).__name__ == "NullTelemetry"
    )
