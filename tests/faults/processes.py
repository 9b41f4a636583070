"""A run that something happens to, through the real command: what was said and when, what was left,
what came out.

The suite plays a sample of the cases (test_processes.py), `benchmarks/process_faults.py` all of
them.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tests.faults.launched import launched
from yolods.checkpoint.read import Checkpoint

IMAGES, VAL_IMAGES, EPOCHS, EVERY_STEPS = 24, 16, 2, 3
"""6 steps an epoch, of two ranks; two batches a rank in an evaluation."""
SILENCE, GRACE = 7, 2
"""Seconds: the silence that is the default, and a shorter patience with what is stuck."""
LIMIT = 240.0
"""Seconds for a run with its restart, on a busy machine."""
LAYOUTS = {
    "zero1": {"zero_optimization": {"stage": 1}},
    # Without a search for weights that are soon used again, which takes seconds of each start.
    "zero3": {"zero_optimization": {"stage": 3, "stage3_max_reuse_distance": 0}},
    "pipeline": {"pipeline": {"stages": 2}},
}
WHATS = (
    "SIGKILL",
    "SIGSTOP",
    "exit",
    "exception",
    "stuck in loading",
    "stuck before a collective",
    "launcher",
)
MOMENTS = ("step", "evaluation", "checkpoint")


@dataclass(frozen=True)
class Case:
    """Something that happens to a run."""

    what: str
    layout: str
    moment: str

    def plan(self, flag: Path) -> dict[str, object]:
        """For `hurt/sitecustomize.py`. In the middle of epoch 2, so that each phase has been seen
        before."""
        phase, times = {
            "step": ("forward", 9),
            "evaluation": ("evaluation", 4),
            "checkpoint": ("a checkpoint", 3),
        }[self.moment]
        what = "stuck" if self.what.startswith("stuck") else self.what
        if self.moment == "step" and self.what == "stuck in loading":
            phase = "data"
        elif self.moment == "step" and self.what == "stuck before a collective":
            phase = "gradients"
        # Of a pipeline only the first stage loads data.
        rank = 0 if self.layout == "pipeline" and phase == "data" else 1
        return {"rank": rank, "phase": phase, "times": times, "what": what, "flag": str(flag)}


def cases() -> list[Case]:
    """All of them. Stuck in loading and stuck before a collective are two places in a step, and one
    elsewhere."""
    every = [Case(*each) for each in itertools.product(WHATS, LAYOUTS, MOMENTS)]
    return [
        case for case in every if case.moment == "step" or case.what != "stuck before a collective"
    ]


@dataclass(frozen=True)
class Played:
    """What came of a run."""

    status: int
    seconds: float | None
    """From the fault to the line that names the rank; None: there was none."""
    again: float
    """From the fault to the end of the command."""
    line: str
    """It."""
    restarts: int
    left: tuple[str, ...]
    """Processes that outlived the command."""
    screen: str
    run: Path

    def weights(self) -> dict[str, torch.Tensor]:
        """fp32 masters and statistics at the end."""
        folder = self.run / "checkpoints"
        checkpoint = Checkpoint(folder / (folder / "latest").read_text())
        return {**checkpoint.masters(), **checkpoint.statistics(average=False)}


def play(case: Case | None, layout: str, data: Path, folder: Path) -> Played:
    """Train in `folder`, with the fault, or undisturbed.

    Args:
        data: the yaml of a set of `IMAGES` images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        "checkpoint": {"every_steps": EVERY_STEPS},
        "watchdog": {"silence_seconds": SILENCE, "grace_seconds": GRACE},
    }
    (folder / "ds.json").write_text(json.dumps({**LAYOUTS[layout], "yolods": own}))
    words = [
        "--data",
        str(data),
        "--model",
        "yolov5[0.33,0.1]",
        "--imgsz",
        "64",
        "--batch-size",
        "4",
    ]
    words += [
        "--workers",
        "0",
        "--epochs",
        str(EPOCHS),
        "--noplots",
        "--set",
        "nbs=4",
        "--deepspeed_config",
        "ds.json",
    ]
    flag = folder / "hurt"
    process = launched(words, folder, None if case is None else case.plan(flag))
    screen: list[tuple[float, str]] = []
    reader = threading.Thread(
        target=lambda: screen.extend((time.time(), line) for line in process.stdout or ())
    )
    reader.start()
    family: set[psutil.Process] = set()
    deadline = time.monotonic() + LIMIT
    try:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(psutil.NoSuchProcess):
                family |= set(psutil.Process(process.pid).children(recursive=True))
            time.sleep(0.2)
        left = [
            each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
        ]
        named = tuple(" ".join(each.cmdline()) for each in left)
    finally:
        _end(process, family)
        reader.join(10)
    ended = time.time()
    hit = next(((at, line) for at, line in screen if case is not None and _names(line, case)), None)
    began = float(flag.read_text()) if flag.exists() else ended
    seconds = hit[0] - began if hit is not None else None
    text = "".join(line for _, line in screen)
    status = process.returncode if process.returncode is not None else -1
    line = hit[1] if hit else ""
    return Played(
        status,
        seconds,
        ended - began,
        line,
        text.count("; restart "),
        named,
        text,
        folder / "runs/exp",
    )


def _names(line: str, case: Case) -> bool:
    """Whether a line says which rank it was, on which host and in what."""
    rank = case.plan(Path())["rank"]
    if case.what == "launcher":
        return "the launcher of rank" in line and "is gone" in line
    return f"rank {rank} on " in line and any(
        words in line
        for words in ("without a message", "no heartbeat", "has been in", "failed in", "is gone")
    )


def _end(process: subprocess.Popen[str], family: set[psutil.Process]) -> None:
    for member in family:
        with suppress(psutil.Error):
            member.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wrong(case: Case, played: Played, whole: Played) -> list[str]:
    """What is not as it has to be, beside the undisturbed run of that layout."""
    found = []
    if played.status != 0:
        found.append(f"status {played.status}")
    # Ranks whose launcher is gone stop after their next step; in the last evaluation there is none.
    over = case.what == "launcher" and case.moment == "evaluation" and not played.restarts
    if played.restarts != 1 and not over:
        found.append(f"{played.restarts} restarts")
    if played.seconds is None or played.seconds > 10:
        found.append(f"named after {played.seconds} s")
    if played.left:
        found.append(f"left behind: {played.left}")
    if not found:
        mine, theirs = played.weights(), whole.weights()
        found += [name for name in theirs if not torch.equal(mine[name], theirs[name])][:3]
    return found
