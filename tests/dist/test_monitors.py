"""DeepSpeed's monitors and profilers in a real run: all of them at once, on two ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.configs import Drawn, step

pytestmark = pytest.mark.slow

EVERY = {
    "zero_optimization": {"stage": 2},
    "tensorboard": {"enabled": True, "output_path": "elsewhere", "job_name": "mine"},
    "csv_monitor": {"enabled": True, "output_path": "elsewhere", "job_name": "mine"},
    "flops_profiler": {"enabled": True, "profile_step": 1, "output_file": "elsewhere/profile.txt"},
    "comms_logger": {"enabled": True},
    "wall_clock_breakdown": True,
    "memory_breakdown": True,
    "checkpoint": {"tag_validation": "Warn"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitors")
    assert (
        step(Drawn(EVERY, ("--epochs", "2", "--batch-size", "4", "--set", "nbs=4"), 2), folder)
        is None
    )
    return folder


def test_they_write_into_the_runs_folder_alone(folder: Path) -> None:
    run = folder / "runs" / "exp"
    rates = (run / "deepspeed" / "mine" / "Train_Samples_lr.csv").read_text("utf-8").splitlines()
    assert rates[0] == "step,lr" and len(rates) == 5
    assert list((run / "deepspeed" / "mine").glob("events.out.tfevents.*"))
    assert "Flops Profiler" in (run / "deepspeed" / "profile.txt").read_text("utf-8")
    assert not list(folder.rglob("elsewhere"))
    assert not Path("elsewhere").exists()


def test_what_they_say_is_in_the_log_and_not_between_the_lines_of_the_epochs(folder: Path) -> None:
    log, screen = (
        (folder / "runs" / "exp" / "train.log").read_text("utf-8"),
        (folder / "screen").read_text("utf-8"),
    )
    for words in ("time (ms) | ", "CPU Virtual Memory", "Comm. Op"):
        assert words in log and words not in screen
    first, second = log.split("Comm. Op")[1:]  # a table per epoch
    # Of the first message's size, once per step of each epoch: counting starts anew.
    row = re.compile(r"DeepSpeed: isend\n.*DeepSpeed: +[\d.]+ KB +(\d+) ")
    counts = [row.search(table) for table in (first, second)]
    assert [count and count.group(1) for count in counts] == ["2", "2"]


def test_what_has_no_effect_is_said_once_on_the_screen_and_in_the_log(folder: Path) -> None:
    for name in ("runs/exp/train.log", "screen"):
        said = [
            line for line in (folder / name).read_text("utf-8").splitlines() if "no effect" in line
        ]
        assert len(said) == 2
        assert '"checkpoint" (yolods writes its own checkpoints' in said[0]
        assert (
            '"tensorboard".output_path, "csv_monitor".output_path, "flops_profiler".output_file'
            in said[1]
        )
