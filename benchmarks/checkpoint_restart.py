"""A run of two ranks that loses one: how long it takes until it is trained again, from the newest
checkpoint."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.report import Spread
from tests.dist.commands import ranks_of, started
from tests.tiny import make_dataset

LIMIT = 300.0
"""Seconds that each part may take."""
SETTINGS = (
    "--model",
    "yolov5n",
    "--imgsz",
    "64",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--epochs",
    "50",
    "--noplots",
)
FIRST_STEP = re.compile(r"^(\S+ \S+) \w+ +yolods\.telemetry: step \d+: ", re.MULTILINE)
"""Of train.log; once a start."""
RESUMED = re.compile(r"^(\S+ \S+) .*Resuming after step \d+", re.MULTILINE)
NAMES = ("named", "ended", "resumed", "first step")
"""Of a restart's times."""


@dataclass(frozen=True)
class Restart:
    """Seconds from the kill of a rank on."""

    named: float
    """Until the screen said which rank it was."""
    ended: float
    """Until no process of the run was left, and it was started again."""
    resumed: float
    """Until the checkpoint was read."""
    first_step: float
    """Until a step was taken."""

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {seconds:.1f} s" for name, seconds in zip(NAMES, astuple(self), strict=True)
        )


def restart(folder: Path) -> Restart:
    """Kill rank 1 of a run in `folder` once it has a checkpoint.

    Raises:
        RuntimeError: something did not come in time; with what the screen showed.
    """
    data = make_dataset(folder / "data", train=64, val=4)
    content = {"zero_optimization": {"stage": 2}, "yolods": {"checkpoint": {"every_steps": 5}}}
    (folder / "ds.json").write_text(json.dumps(content), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "yolods",
        "launch",
        "train",
        "--num_gpus",
        "2",
        "--max-restarts",
        "1",
    ]
    words += ["--data", str(data), *SETTINGS, "--deepspeed_config", "ds.json"]
    run, screen = folder / "runs" / "exp", folder / "screen"
    with screen.open("w+") as sink, started(words, folder, sink) as process:
        wait = _Wait(process, screen)
        wait.until(lambda: _newest(run) > 5, "a checkpoint")
        killed = time.time()
        _rank(process, 1).send_signal(signal.SIGKILL)
        named, ended = (
            wait.until(
                lambda text=text: text in screen.read_text(encoding="utf-8"), f"line with {text!r}"
            )
            for text in ("ended without a message", "restart 1 of 1")
        )
        wait.until(lambda: len(_times(run, FIRST_STEP)) > 1, "a step after the restart")
        reached = (named, ended, _times(run, RESUMED)[-1], _times(run, FIRST_STEP)[-1])
        return Restart(*(when - killed for when in reached))


class _Wait:
    """Waits for what a run does."""

    def __init__(self, process: subprocess.Popen[str], screen: Path) -> None:
        self._process, self._screen = process, screen

    def until(self, reached: Callable[[], bool], what: str) -> float:
        """The time of day at which it was reached."""
        deadline = time.monotonic() + LIMIT
        while not reached():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {what}: {self._screen.read_text(encoding='utf-8')[-3000:]}")
            time.sleep(0.02)
        return time.time()


def _rank(process: subprocess.Popen[str], number: int) -> psutil.Process:
    return ranks_of(process)[number]


def _newest(run: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    try:
        return int(
            (run / "checkpoints" / "latest").read_text(encoding="utf-8").removeprefix("step")
        )
    except (OSError, ValueError):
        return 0


def _times(run: Path, pattern: re.Pattern[str]) -> list[float]:
    """The time of day of every such line in train.log."""
    try:
        text = (run / "train.log").read_text(encoding="utf-8")
    except OSError:
        return []
    return [datetime.fromisoformat(when).timestamp() for when in pattern.findall(text)]


def restart_table(found: Sequence[Restart]) -> list[str]:
    """Rows of seconds since the kill."""
    rows = ["| since the kill, s | median (min..max) |", "| --- | ---: |"]
    for name, seconds in zip(NAMES, zip(*map(astuple, found), strict=True), strict=True):
        rows.append(f"| {name} | {Spread.of(seconds).text(1)} |")
    return [*rows, "", f"{len(found)} kills."]
