"""Starting yolods as a person does: a command in a folder of its own, with everything it starts
ended in time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from tests.forks import environment
from yolods.launch.deepspeed_runner import NODE_LAUNCHER

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--model", "yolov5[0.1,0.1]", "--imgsz", "64", "--batch-size", "4", "--workers", "0")
"""Flags of a run that takes seconds."""


def yolods(word: str) -> list[str]:
    """What launch.sh starts."""
    return [sys.executable, "-m", "yolods", "launch", word]


def front_door(word: str) -> list[str]:
    """launch.sh itself where these tests run in the environment that it made; else what it would
    start."""
    if Path(sys.prefix) == ROOT / ".venv":
        return ["bash", str(ROOT / "launch.sh"), word]
    return yolods(word)


@contextmanager
def started(
    words: list[str],
    cwd: Path,
    screen: IO[str],
    *,
    popen: type[subprocess.Popen] = subprocess.Popen,
) -> Iterator[subprocess.Popen[str]]:
    """A command that runs; whatever of it still does at the end is killed.

    Args:
        popen: what starts it; `tests.forks.Popen` forks it and what it starts.
    """
    process = popen(
        words,
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=screen,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)


def wait_for(
    true: Callable[[], bool], seconds: float, process: subprocess.Popen, screen: Path
) -> None:
    """Until a command that runs has come to a point.

    Raises:
        AssertionError: it has ended, or takes longer; with what it has shown.
    """
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, "the run ended by itself:\n" + screen.read_text()
        assert time.monotonic() < end, "nothing happened:\n" + screen.read_text()
        time.sleep(0.05)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a process and all its descendants, whatever group they are in."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=5)
    process.wait()


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks that a start on this machine consists of, in their order: the children of the
    host's launcher."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            parent = child.parent()
            if parent is not None and NODE_LAUNCHER in parent.cmdline():
                found.append(child)
    return sorted(found, key=lambda rank: (rank.create_time(), rank.pid))


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """CPU time that they have had."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)
