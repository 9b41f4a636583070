"""A run killed in the middle of epoch 2 and resumed ends, bit for bit, as one that was never
killed.

Through the real command on two ranks, in fp32. The kill is SIGKILL for every process of the run at
once.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import forks
from tests.dist.commands import SMALL, cpu_seconds, kill, ranks_of, started, yolods
from tests.tiny import make_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(230)]

IMAGES, EPOCHS, EVERY_STEPS = 64, 3, 5
STEPS = IMAGES // 4
"""Optimizer steps an epoch, at a batch of 4 without accumulation."""
SETTINGS = ("--epochs", str(EPOCHS), "--noplots", "--set", "nbs=4", "--set", "ema_tau=10")
PATIENCE_SECONDS = 75.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", train=IMAGES, val=4)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    _finish(_train(data, folder, every_steps=0), folder)
    return folder / "runs" / "exp"


def _train(data: Path, folder: Path, *, every_steps: int) -> list[str]:
    """The command of a new run, whose results go to `folder`/runs/exp."""
    content = {
        "zero_optimization": {"stage": 2},
        "yolods": {"checkpoint": {"every_steps": every_steps}},
    }
    (folder / "ds.json").write_text(json.dumps(content))
    return [
        *yolods("train"),
        "--data",
        str(data),
        *SMALL,
        *SETTINGS,
        "--deepspeed_config",
        "ds.json",
    ]


def _finish(words: list[str], folder: Path) -> None:
    """Run a command to its end, which has to be a good one."""
    with (
        open(folder / "screen", "w+") as screen,
        started(words, folder, screen, popen=forks.Popen) as process,
    ):
        code = process.wait(PATIENCE_SECONDS)
        screen.seek(0)
        assert code == 0, screen.read()


def _kill_when(reached: Callable[[], bool], words: list[str], folder: Path) -> None:
    """Start a command and kill it some work after `reached`."""
    with (
        open(folder / "screen", "w+") as screen,
        started(words, folder, screen, popen=forks.Popen) as process,
    ):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            screen.seek(0)
            assert process.poll() is None and time.monotonic() < deadline, screen.read()
            time.sleep(0.01)
        # Not a time on the clock: on a busy machine that could pass without a step being taken.
        ranks = ranks_of(process)
        assert len(ranks) == 2
        worked = cpu_seconds(ranks)
        while cpu_seconds(ranks) < worked + 0.5 and time.monotonic() < deadline:
            time.sleep(0.01)
        kill(process)


def _rows(run: Path) -> list[dict[str, str]]:
    try:
        with open(run / "results.csv", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def _newest(run: Path) -> dict[str, Any]:
    """progress.json of the newest checkpoint, with where it lies."""
    try:
        folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text()
        return {**json.loads((folder / "progress.json").read_text()), "folder": folder}
    except FileNotFoundError:
        return {"position": 0, "epochs_done": 0}


@pytest.mark.parametrize(
    "every_steps", [0, EVERY_STEPS], ids=["from an epoch's end", "from within the epoch"]
)
def test_a_killed_and_resumed_run_ends_as_one_that_was_not(
    uninterrupted: Path, data: Path, tmp_path: Path, every_steps: int
) -> None:
    run = tmp_path / "runs" / "exp"
    wanted = IMAGES + 4 * every_steps

    def in_the_middle() -> bool:
        newest = _newest(run)
        return newest["epochs_done"] == 1 and newest["position"] >= wanted

    _kill_when(in_the_middle, _train(data, tmp_path, every_steps=every_steps), tmp_path)
    # Epoch 2 had begun, for ranks had worked on after the checkpoint, and it had not ended.
    assert len(_rows(run)) == 1
    left = _newest(run)
    assert left["epochs_done"] == 1
    assert (
        left["position"] == IMAGES if every_steps == 0 else IMAGES < left["position"] < 2 * IMAGES
    )

    _finish([*yolods("train"), "--resume", str(run)], tmp_path)
    assert "Resuming" in (tmp_path / "screen").read_text()
    assert _differing_runs(run, uninterrupted) == []


def _differing_runs(mine: Path, other: Path) -> list[str]:
    """Everything in which two finished runs differ, but times of day, durations, identities and
    where they lie."""
    found = []
    ours, theirs = _newest(mine), _newest(other)
    for key in sorted((ours.keys() | theirs.keys()) - {"seconds", "folder", "run"}):
        found += _differing(ours.get(key), theirs.get(key), f"progress.{key}")
    for rank in range(2):
        states = [
            torch.load(each["folder"] / f"rank{rank}.pt", weights_only=False)
            for each in (ours, theirs)
        ]
        assert {"masters", "optimizer", "ema", "statistics"} <= states[0].keys()
        found += _differing(*states, f"rank{rank}")
    for name in ("last", "best"):
        files = [
            torch.load(run / "weights" / f"{name}.pt", weights_only=False) for run in (mine, other)
        ]
        found += _differing(*({**file["model"].state_dict()} for file in files), f"{name}.pt")
    rows = [[{**row, "time": ""} for row in _rows(run)] for run in (mine, other)]
    assert [row["epoch"] for row in rows[0]] == [str(epoch + 1) for epoch in range(EPOCHS)]
    return found + _differing(*rows, "results.csv")


def _differing(mine: Any, other: Any, where: str) -> list[str]:
    """Places in two nested structures that are not the same bit for bit."""
    if type(mine) is not type(other):
        return [f"{where}: {type(mine).__name__} and {type(other).__name__}"]
    if isinstance(mine, dict):
        if mine.keys() != other.keys():
            return [f"{where}: {sorted(map(str, mine.keys() ^ other.keys()))}"]
        return [
            each for key in mine for each in _differing(mine[key], other[key], f"{where}.{key}")
        ]
    if isinstance(mine, list | tuple):
        if len(mine) != len(other):
            return [f"{where}: {len(mine)} and {len(other)}"]
        return [
            each
            for place, pair in enumerate(zip(mine, other, strict=True))
            for each in _differing(*pair, f"{where}[{place}]")
        ]
    if isinstance(mine, Tensor):
        return (
            []
            if mine.dtype == other.dtype and torch.equal(mine, other)
            else [f"{where}: {_apart(mine, other)}"]
        )
    if isinstance(mine, np.ndarray):
        return [] if np.array_equal(mine, other) else [where]
    return [] if mine == other else [f"{where}: {mine} and {other}"]


def _apart(mine: Tensor, other: Tensor) -> str:
    if mine.shape != other.shape:
        return f"{tuple(mine.shape)} and {tuple(other.shape)}"
    return f"up to {float((mine.double() - other.double()).abs().max()):g} apart"
