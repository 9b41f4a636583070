"""The screen: ultralytics' table on a terminal, quiet lines elsewhere."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace

import pytest

from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES, METRIC_NAMES, EpochStats
from yolods.telemetry.console import Console, RunningLoss, gpu_memory


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar cuts its text to the terminal's width, which it asks of COLUMNS for a stream without
    a descriptor."""
    monkeypatch.setenv("COLUMNS", "200")


def step_record(
    step: int, *, loss: float = 1.0, skipped: bool = False, samples: int = 16
) -> StepRecord:
    return StepRecord(
        step=step,
        position=step * samples,
        samples=samples,
        loss=dict.fromkeys(LOSS_NAMES, loss),
        grad_norm=1.0,
        verdict=Verdict("skip", "overflow") if skipped else Verdict(),
        instances=33,
        imgsz=320,
    )


def epoch_stats(epoch: int = 0, *, evaluated: bool = True) -> EpochStats:
    return EpochStats(
        epoch=epoch,
        position=32 * (epoch + 1),
        seconds=1.0,
        train_loss=dict.fromkeys(LOSS_NAMES, 2.5),
        val_loss=dict.fromkeys(LOSS_NAMES, 3.0) if evaluated else None,
        metrics=dict(zip(METRIC_NAMES, (0.9, 0.8, 0.7, 0.6), strict=True)) if evaluated else None,
        fitness=0.6 if evaluated else None,
        lr={"lr/pg0": 0.01},
        images_per_second=41.5,
        is_best=evaluated,
    )


def lines(stream: io.StringIO) -> list[str]:
    text = re.sub(r"\033\[[0-9;]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    return [line for line in text.split("\n") if line.strip()]


def make(stream: io.StringIO, **options: object) -> Console:
    return Console(epochs=3, images_per_epoch=80, batch_size=16, stream=stream, **options)


def test_running_loss_is_weighted_by_samples_and_leaves_skipped_steps_out() -> None:
    loss = RunningLoss()
    assert math.isnan(loss.mean()["box_loss"])
    loss.add(step_record(1, loss=1.0, samples=16))
    loss.add(step_record(2, loss=math.nan, skipped=True))
    loss.add(step_record(3, loss=4.0, samples=48))
    assert loss.mean() == pytest.approx(dict.fromkeys(LOSS_NAMES, 3.25))


def test_header_and_row_are_those_of_ultralytics() -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Names:
        loss_names = LOSS_NAMES

    stream = Terminal()
    console = make(stream)
    console.epoch_begin(0)
    console.step(step_record(1, loss=1.25))
    console.close()
    assert DetectionTrainer.progress_string(Names()).strip("\n") in lines(stream)
    row = ("%11s" * 2 + "%11.4g" * 5) % ("1/3", gpu_memory(), 1.25, 1.25, 1.25, 33, 320)
    assert lines(stream)[-1].startswith(f"{row}: 20%")


def test_terminal_bar_counts_batches_by_position() -> None:
    stream = Terminal()
    console = make(stream)
    console.epoch_begin(0)
    console.step(step_record(1, samples=32))  # one step of two accumulated batches
    console.step(step_record(2, samples=40))  # the last batch reaches into the next epoch
    console.close()
    assert " 5/5 " in lines(stream)[-1]
    assert stream.getvalue().endswith("\n")


def test_validation_table_on_a_terminal() -> None:
    stream = Terminal()
    console = make(stream)
    rows = [("all", 8, 20, (0.5, 0.25, 0.125, 0.1)), ("RBC", 8, 20, (0.5, 0.25, 0.125, 0.1))]
    console.val_begin(2)
    console.val_progress(2)
    console.val_end(rows, final=False)
    shown = lines(stream)
    assert shown[-2].split()[:7] == [
        "Class",
        "Images",
        "Instances",
        "Box(P",
        "R",
        "mAP50",
        "mAP50-95):",
    ]
    assert shown[-1].split() == ["all", "8", "20", "0.5", "0.25", "0.125", "0.1"]


def test_without_a_terminal_there_is_one_line_an_epoch() -> None:
    stream = io.StringIO()
    console = make(stream, clock=lambda: 0.0)
    for epoch in range(2):
        console.epoch_begin(epoch)
        for step in range(5):
            console.step(step_record(step + 1))
        console.val_begin(2)
        console.val_progress(2)
        console.val_end([("all", 8, 20, (0.5, 0.25, 0.125, 0.1))], final=False)
        console.epoch_end(epoch_stats(epoch))
    assert "\r" not in stream.getvalue()
    assert len(lines(stream)) == 3, "a header and two epochs"
    cells = lines(stream)[1].split()
    assert cells == [
        "1/3",
        gpu_memory(),
        *["2.5"] * 3,
        "33",
        "320",
        "0.9",
        "0.8",
        "0.7",
        "0.6",
        "41.5",
        "best",
        "0",
        "s",
        "left",
    ]


def test_epoch_without_evaluation_shows_dashes() -> None:
    stream = io.StringIO()
    console = make(stream)
    console.epoch_begin(0)
    console.epoch_end(epoch_stats(evaluated=False))
    assert lines(stream)[-1].split()[-7:] == ["-", "-", "-", "-", "-", "-", "41.5"]


def test_a_long_epoch_says_every_thirty_seconds_that_it_is_alive() -> None:
    now = [0.0]
    stream = io.StringIO()
    console = Console(
        epochs=1, images_per_epoch=1600, batch_size=16, stream=stream, clock=lambda: now[0]
    )
    console.epoch_begin(0)
    for step in range(1, 41):
        now[0] += 2.0
        console.step(step_record(step))
    alive = [line for line in lines(stream) if "batch" in line]
    assert [re.search(r"batch (\d+)/100", line)[1] for line in alive] == ["15", "30"]
    assert "140 s left" in alive[-1], "70 batches at 2 s each"


def test_time_left_after_a_resume_in_mid_epoch_counts_from_the_resume() -> None:
    now = [0.0]
    stream = io.StringIO()
    console = Console(
        epochs=1, images_per_epoch=1600, batch_size=16, stream=stream, clock=lambda: now[0]
    )
    console.epoch_begin(0)
    for step in range(61, 71):
        now[0] += 4.0
        console.step(step_record(step))
    assert "batch 68/100" in lines(stream)[-1]
    assert "128 s left" in lines(stream)[-1], "32 batches at 4 s each"


def test_final_table_is_shown_without_a_terminal() -> None:
    stream = io.StringIO()
    console = make(stream)
    console.val_begin(1)
    console.val_end([("all", 8, 20, (0.5,) * 4), ("RBC", 4, 20, (0.5,) * 4)], final=True)
    assert [line.split()[0] for line in lines(stream)] == ["Class", "all", "RBC"]


def test_a_screen_that_is_gone_does_not_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    console = make(Gone())
    console.epoch_begin(0)
    console.step(step_record(1))
    console.epoch_end(epoch_stats())
    console.say("still here")
    console.close()
    assert capsys.readouterr().err == ""


def test_eighty_columns_show_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    now = [0.0]
    stream = Terminal()
    console = make(stream, clock=lambda: now[0])
    console.epoch_begin(0)
    for step in range(1, 6):
        now[0] += 12.0
        console.step(step_record(step, loss=1.234))
    console.val_begin(2)
    console.val_progress(2)
    console.val_end([("all", 64, 210, (0.692, 0.00469, 0.000833, 8.33e-05))], final=False)
    console.epoch_end(epoch_stats())
    console.close()
    shown = lines(stream)
    assert all(len(line) < 80 for line in shown)
    last = [line for line in shown if line.split()[0] == "1/3"][-1].split()
    assert last[:8] == ["1/3", gpu_memory(), "1.234", "1.234", "1.234", "33", "320", "5/5"]
    assert shown[-2].split() == ["all", "64", "210", "0.692", "0.00469", "0.000833", "8.33e-05"]
    assert shown[-1].strip() == "best so far; 41.5 images/s; 2 minutes left"


def test_an_epoch_that_is_not_the_best_names_the_one_that_is() -> None:
    stream = Terminal()
    console = make(stream)
    console.epoch_begin(1)
    stats = replace(epoch_stats(2), is_best=False, best_fitness=0.6, best_epoch=0)
    console.epoch_end(stats)
    assert lines(stream)[-1].strip() == "best: epoch 1, fitness 0.6; 41.5 images/s"


def test_time_left_of_a_run_counts_from_where_this_start_began() -> None:
    """A resume in the middle of epoch 2 of 3: half an epoch took a minute, one is left."""
    now = [0.0]
    stream = io.StringIO()
    console = make(stream, clock=lambda: now[0], heartbeat=1e9)
    console.epoch_begin(1)
    for position in (128, 144, 160):
        now[0] += 24.0
        console.step(replace(step_record(1), position=position))
    console.epoch_end(epoch_stats(1))
    assert lines(stream)[-1].endswith("best  2 minutes left")


def test_a_row_after_a_resume_without_a_step_has_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was stopped between an epoch's last step and its evaluation."""
    stream = io.StringIO()
    console = make(stream)
    console.epoch_begin(0)
    console.epoch_end(epoch_stats())
    assert lines(stream)[-1].split()[5:7] == ["-", "-"]
