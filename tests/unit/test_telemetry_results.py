"""results.csv is the file ultralytics' own trainer would have written, and a resume leaves one row
an epoch."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolods.stats import LOSS_NAMES, METRIC_NAMES, EpochStats
from yolods.telemetry.results import ResultsTable, read_results


def epoch_stats(epoch: int, *, evaluated: bool = True, seconds: float = 12.34567891) -> EpochStats:
    losses = {name: 1.23456789 / (i + epoch + 1) for i, name in enumerate(LOSS_NAMES)}
    return EpochStats(
        epoch=epoch,
        position=32 * (epoch + 1),
        seconds=seconds,
        train_loss=losses,
        val_loss={name: 2 * value for name, value in losses.items()} if evaluated else None,
        metrics={name: 0.1 * (i + 1) + 1e-7 for i, name in enumerate(METRIC_NAMES)}
        if evaluated
        else None,
        fitness=0.4 if evaluated else None,
        lr={f"lr/pg{i}": 0.01 / (i + 3) for i in range(3)},
        images_per_second=40.0,
        is_best=False,
    )


def epochs_in(path: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]]


def test_file_is_what_ultralytics_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.utils.metrics import DetMetrics

    theirs, ours = tmp_path / "theirs.csv", tmp_path / "results.csv"
    monkeypatch.setattr(time, "time", lambda: 112.34567891)
    table = ResultsTable(ours)
    assert table.earlier == {}
    for epoch in range(2):
        stats = epoch_stats(epoch)
        trainer = SimpleNamespace(
            csv=theirs, epoch=epoch, train_time_start=100.0, loss_names=LOSS_NAMES
        )
        values = BaseTrainer.label_loss_items(trainer, stats.train_loss)
        values |= {key: round(float(stats.metrics[key]), 5) for key in DetMetrics().keys}
        values |= BaseTrainer.label_loss_items(trainer, stats.val_loss, prefix="val")
        BaseTrainer.save_metrics(trainer, {**values, **stats.lr})
        table.append(stats)
    assert ours.read_text() == theirs.read_text()


def test_resume_drops_rows_from_the_resumed_epoch_on(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    first = ResultsTable(path)
    for epoch in range(4):
        first.append(epoch_stats(epoch, seconds=1.0))
    resumed = ResultsTable(path, start_epoch=2)
    assert epochs_in(path) == [1, 2]
    assert resumed.earlier["epoch"] == [1.0, 2.0] and resumed.earlier["time"] == [1.0, 1.0]
    resumed.append(epoch_stats(2, seconds=9.0))
    assert epochs_in(path) == [1, 2, 3]
    assert read_results(path)["time"] == [1.0, 1.0, 9.0]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_resume_drops_a_row_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    table = ResultsTable(path)
    table.append(epoch_stats(0))
    table.append(epoch_stats(1))
    path.write_text(path.read_text()[:-4])  # all cells are there, the last one shortened
    assert read_results(path)["epoch"] == [1.0]
    ResultsTable(path, start_epoch=2).append(epoch_stats(2))
    assert epochs_in(path) == [1, 3]


def test_new_run_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path).append(epoch_stats(0))
    ResultsTable(path).append(epoch_stats(0))
    assert epochs_in(path) == [1]


@pytest.mark.parametrize("old", ["", "epo", "hello\nworld\n"])
def test_resume_over_a_file_without_header_starts_afresh(tmp_path: Path, old: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(old)
    ResultsTable(path, start_epoch=3).append(epoch_stats(3))
    assert path.read_text().startswith("epoch,time,train/box_loss,")
    assert epochs_in(path) == [4]


def test_epoch_without_evaluation_has_nan_where_it_has_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path).append(epoch_stats(0, evaluated=False))
    columns = read_results(path)
    assert all(math.isnan(columns[name][0]) for name in METRIC_NAMES)
    assert math.isnan(columns["val/box_loss"][0])
    assert columns["train/box_loss"] == [1.23457]
