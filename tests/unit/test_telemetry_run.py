"""A run seen through the facade: what rank 0 leaves, that other ranks leave nothing, that no fault
stops a run."""

from __future__ import annotations

import io
import logging
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.sent import communication
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES, METRIC_NAMES, EpochStats
from yolods.telemetry.interface import NullTelemetry, Telemetry
from yolods.telemetry.run import RunTelemetry, communication_line, tensorboard

NAMES = {0: "disc", 1: "bar"}


def make_batch(images: int = 4, size: int = 64) -> dict[str, object]:
    return {
        "img": torch.full((images, 3, size, size), 90, dtype=torch.uint8),
        "cls": (torch.arange(images) % 2).float().reshape(-1, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]).repeat(images, 1),
        "batch_idx": torch.arange(images).float(),
        "im_file": [f"{i}.jpg" for i in range(images)],
    }


def make_metrics() -> object:
    """Four boxes, one of each class found, through ultralytics' own DetMetrics."""
    from ultralytics.utils.metrics import DetMetrics

    metrics = DetMetrics(NAMES)
    hits = np.array([[True] * 10, [False] * 10])
    for cls in (0.0, 1.0):
        pair = np.array([cls, cls])
        stat = {
            "tp": hits,
            "conf": np.array([0.9, 0.4]),
            "pred_cls": pair,
            "target_cls": pair,
            "target_img": pair[:1],
        }
        metrics.update_stats({**stat, "im_name": f"{cls}.jpg"})
    metrics.process()
    return metrics


def step_record(step: int, epoch: int) -> StepRecord:
    scalars = {"lr/pg0": 0.01, "optim/momentum": 0.9}
    record = StepRecord(
        loss=dict.fromkeys(LOSS_NAMES, 1.0), grad_norm=1.0, instances=4, scalars=scalars
    )
    return record.placed(
        step=step, epoch=epoch, position=step * 4, samples=4, imgsz=64, seconds=0.1
    )


def epoch_stats(epoch: int) -> EpochStats:
    return EpochStats(
        epoch=epoch,
        position=32 * (epoch + 1),
        seconds=1.0,
        train_loss=dict.fromkeys(LOSS_NAMES, 1.0),
        val_loss=dict.fromkeys(LOSS_NAMES, 1.0),
        metrics=dict.fromkeys(METRIC_NAMES, 0.5),
        fitness=0.5,
        lr={"lr/pg0": 0.01},
        images_per_second=40.0,
        is_best=True,
    )


def train(telemetry: Telemetry, epochs: int = 2, steps: int = 2, start_epoch: int = 0) -> None:
    """The calls of a training loop, in its order."""
    batch, metrics = make_batch(), make_metrics()
    prediction = {
        "bboxes": torch.tensor([[8.0, 8, 40, 40]]),
        "conf": torch.tensor([0.8]),
        "cls": torch.tensor([1.0]),
    }
    with telemetry:
        telemetry.start({"epochs": epochs}, "| layer |", ["a note"])
        telemetry.labels(np.array([[0.0, 0.4, 0.4, 0.4, 0.4], [1.0, 0.4, 0.4, 0.4, 0.4]]))
        for epoch in range(start_epoch, epochs):
            telemetry.epoch_begin(epoch)
            for k in range(epoch * steps, (epoch + 1) * steps):
                telemetry.train_images(batch, k)
                telemetry.step(step_record(k + 1, epoch))
            telemetry.val_begin(1)
            telemetry.val_images(batch, [prediction] * 4, 0)
            telemetry.val_progress()
            telemetry.val_end(metrics, 2, final=epoch == epochs - 1)
            telemetry.epoch_end(epoch_stats(epoch))
            telemetry.event("checkpoint", f"saved epoch {epoch + 1}")
        telemetry.finish(dict.fromkeys(METRIC_NAMES, 0.5), 3600.0)


def open_run(run_dir: Path, **options: object) -> RunTelemetry:
    defaults = {
        "names": NAMES,
        "epochs": 2,
        "images_per_epoch": 8,
        "batch_size": 4,
        "stream": io.StringIO(),
    }
    return RunTelemetry(run_dir, **{**defaults, **options})


@pytest.mark.slow
def test_a_run_leaves_its_files_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "exp" / "weights").mkdir(parents=True)
    (tmp_path / "exp" / "weights" / "best.pt").touch()
    screen = io.StringIO()
    train(open_run(tmp_path / "exp", stream=screen, close_mosaic_batch=3))
    files = {file.name for file in (tmp_path / "exp").iterdir()}
    assert {name for name in files if not name.startswith("events.out.tfevents.")} == {
        "labels.jpg",
        "results.csv",
        "results.png",
        "weights",
        *(f"train_batch{k}.jpg" for k in (0, 1, 2, 3)),
        "val_batch0_labels.jpg",
        "val_batch0_pred.jpg",
    }
    assert len(files) == 11, "and one event file"
    shown = screen.getvalue()
    for text in (
        "a note",
        "saved epoch 2",
        "disc",
        "Training took 1.000 hours.",
        "mAP50 0.500",
        "weights/best.pt",
    ):
        assert text in shown
    assert f"tensorboard --logdir {tmp_path / 'exp'}" in shown


def test_pr_curves_are_of_epochs_and_of_the_end_but_not_of_what_is_compared(tmp_path: Path) -> None:
    metrics = make_metrics()
    with open_run(tmp_path, plots=False) as telemetry:
        for epoch in range(2):
            telemetry.epoch_begin(epoch)
            telemetry.step(step_record(epoch + 1, epoch))
            telemetry.val_end(metrics, 2)
            telemetry.epoch_end(epoch_stats(epoch))
        for final in (False, False, True):  # best.pt with two statistics, and what was chosen
            telemetry.val_end(metrics, 2, final=final)
    reader = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    reader.Reload()
    assert [point.step for point in reader.Tensors("pr/all classes")] == [1, 2, 2]


def test_the_line_of_what_ranks_send(tmp_path: Path) -> None:
    """Means over both ranks, which wait for 12.5 and 0% of a step; only after it was measured."""
    screen = io.StringIO()
    telemetry = open_run(tmp_path, plots=False, stream=screen)
    telemetry.communication(communication(needed=36.5e6))
    train(telemetry)
    assert (
        "communication: 3.0 MB and 3 calls per step and rank (ZeRO-1 needs 2P = 36.5 MB), 0.41 s "
        "of 0.93 s, 12% hidden, 38% held, 6% waiting\n"
    ) in screen.getvalue()
    small = communication_line(communication(needed=None)).split(", ")[0]
    assert small.endswith("3 calls per step and rank"), small
    one = communication_line(replace(communication(needed=None), told_apart=False))
    assert one.endswith("38% held or waiting, which could not be told apart")


def test_which_training_batches_are_drawn(tmp_path: Path) -> None:
    with open_run(tmp_path, close_mosaic_batch=70) as telemetry:
        assert [k for k in range(200) if telemetry.wants_train_images(k)] == [0, 1, 2, 70, 71, 72]
    with open_run(tmp_path, plots=False) as telemetry:
        assert not any(telemetry.wants_train_images(k) for k in range(5))


def test_without_plots_there_are_numbers_only(tmp_path: Path) -> None:
    train(open_run(tmp_path, plots=False))
    assert {file.suffix for file in tmp_path.iterdir()} - {".csv"} == {
        next(tmp_path.glob("events*")).suffix
    }


def test_other_ranks_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    train(NullTelemetry())
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_resumed_run_has_one_row_an_epoch(tmp_path: Path) -> None:
    train(open_run(tmp_path))
    train(open_run(tmp_path, start_epoch=1, start_step=2), start_epoch=1)
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]


def test_faults_of_every_kind_are_one_warning_each_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    screen = io.StringIO()
    with caplog.at_level(logging.WARNING, logger="yolods"):
        telemetry = open_run(tmp_path, stream=screen)
        monkeypatch.setattr(SummaryWriter, "add_scalar", full)
        (tmp_path / "results.csv").mkdir()
        train(telemetry)
    warnings = [
        record.getMessage() for record in caplog.records if record.name.startswith("yolods")
    ]
    assert [warning.split(" could not")[0] for warning in warnings] == [
        "TensorBoard: the curves",
        "the row of epoch 1 in results.csv",
        "the row of epoch 2 in results.csv",
        "results.png",
    ]
    assert "No space left on device" in warnings[0]
    assert "Training took" in screen.getvalue()


def test_close_may_come_at_any_time_and_twice(tmp_path: Path) -> None:
    telemetry = open_run(tmp_path)
    telemetry.epoch_begin(0)
    telemetry.step(step_record(1, 0))
    telemetry.close()
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    telemetry.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left
    assert any(name.startswith("events.out") and content for name, content in left.items())


def test_the_bar_is_not_drawn_again_below_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    with open_run(tmp_path, stream=screen) as telemetry:
        telemetry.epoch_begin(0)
        telemetry.step(step_record(1, 0))
        telemetry.event("stop", "Ctrl-C: stopped after step 1, in epoch 1")
        telemetry.event("stop", "to resume: yolods train --resume runs/exp")
    assert screen.getvalue().endswith("--resume runs/exp\n")
    assert screen.getvalue().count("Ctrl-C") == 1


def test_tensorboards_command_is_one_that_a_shell_takes() -> None:
    words = shlex.split(tensorboard(Path("my runs/exp")))
    assert words[1:] == ["--logdir", "my runs/exp"]
    assert shutil.which(words[0]), "it exists as typed"
