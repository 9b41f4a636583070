"""Ctrl-C and SIGTERM in the middle of training: a checkpoint is written, and everything ends in
time and quietly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import forks
from tests.dist.commands import started, wait_for
from tests.tiny import make_dataset

pytestmark = pytest.mark.slow
WORDS = ("--model", "yolov5[0.1,0.1]", "--imgsz", "64", "--batch-size", "4", "--epochs", "1000")


def interrupted(
    words: list[str], folder: Path, stop: Callable[[subprocess.Popen], None], workers: int = 0
) -> tuple[int, str]:
    """Train in `folder` into the fourth epoch, `stop` it, and see that nothing is left; (status,
    screen)."""
    yaml = make_dataset(folder / "data", train=8, val=2)
    (folder / "ds.json").write_text(json.dumps({"yolods": {"checkpoint": {"every_epochs": 0}}}))
    words = [
        sys.executable,
        "-m",
        "yolods",
        *words,
        "train",
        "--data",
        str(yaml),
        *WORDS,
        "--noplots",
        "--noval",
    ]
    words += ["--set", "nbs=4", "--deepspeed_config", "ds.json", "--workers", str(workers)]
    screen = folder / "screen"
    results = folder / "runs" / "exp" / "results.csv"
    with open(screen, "w") as out, started(words, folder, out, popen=forks.Popen) as process:
        wait_for(
            lambda: results.is_file() and results.read_text().count("\n") > 3, 120, process, screen
        )
        family = psutil.Process(process.pid).children(recursive=True)
        stop(process)
        status = process.wait(30)
        assert not psutil.wait_procs(family, timeout=5)[1]
    return status, screen.read_text()


def check_saved(run: Path, screen: str) -> None:
    """The run can go on from the very step at which it was stopped."""
    assert "Traceback" not in screen
    assert "KeyboardInterrupt" not in screen
    assert "died" not in screen
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "latest").read_text()
    progress = json.loads((checkpoint / "progress.json").read_text())
    assert progress["step"] > 0
    assert f"stopped after step {progress['step']}, in epoch" in screen
    assert f"--resume {Path('runs', 'exp')}" in screen


def test_ctrl_c_on_one_process_and_its_loaders(tmp_path: Path) -> None:
    def press(process: subprocess.Popen) -> None:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process at once

    status, screen = interrupted([], tmp_path, press, workers=2)
    assert status == 130
    check_saved(tmp_path / "runs" / "exp", screen)
    assert "Ctrl-C: stopped" in screen


def test_sigterm_to_the_command_reaches_every_rank_of_two(tmp_path: Path) -> None:
    """As a scheduler sends it, which knows the command alone; DeepSpeed's launcher then tells its
    first rank only."""
    status, screen = interrupted(["launch"], tmp_path, lambda process: process.terminate())
    assert status == 143
    check_saved(tmp_path / "runs" / "exp", screen)
    assert "SIGTERM: stopped" in screen
    assert "restart" not in screen


def test_sigint_to_the_command_alone_is_told_as_ctrl_c(tmp_path: Path) -> None:
    """As `kill -INT` and some schedulers send it: no terminal has told the ranks."""
    status, screen = interrupted(
        ["launch"], tmp_path, lambda process: process.send_signal(signal.SIGINT)
    )
    assert status == 130
    check_saved(tmp_path / "runs" / "exp", screen)
    assert "Ctrl-C: stopped" in screen
    assert "SIGTERM" not in screen


@pytest.mark.parametrize("seconds", [0.7, 3.0])
def test_ctrl_c_during_the_start_shows_no_traceback_and_leaves_no_folder(
    tmp_path: Path, seconds: float
) -> None:
    yaml = make_dataset(tmp_path / "data", train=8, val=2)
    words = [sys.executable, "-m", "yolods", "launch", "train", "--data", str(yaml), *WORDS]
    with open(tmp_path / "screen", "w") as out, started(words, tmp_path, out) as process:
        time.sleep(seconds)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
        assert not psutil.wait_procs(family, timeout=5)[1]
    shown = (tmp_path / "screen").read_text().splitlines()
    assert [line for line in shown if not line.startswith("yolods: version ")] == []
    assert not (tmp_path / "runs").exists()
