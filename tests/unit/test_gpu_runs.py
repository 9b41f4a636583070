"""The parts of benchmarks/gpu.py that start whole runs, with a stand-in for `yolods launch
train`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_ranks, gpu_runs
from benchmarks.gpu_conductor import read_notes
from benchmarks.gpu_job import Job

pytestmark = pytest.mark.process

STAND_IN = '''"""Writes a row of results.csv an epoch; SIGTERM ends it after the epoch under way, with 143."""
import os, signal, subprocess, sys, time
from pathlib import Path

words = sys.argv[1:]
flag = lambda name: words[words.index(name) + 1]
plan = os.environ.get("PLAN", "")
resumed = "--resume" in words
run = Path(flag("--resume")) if resumed else Path(flag("--project"), flag("--name"))
(run / "weights").mkdir(parents=True, exist_ok=True)
table, epochs = run / "results.csv", 3
if not resumed:
    table.write_text("epoch, train/box_loss, train/cls_loss, train/dfl_loss, metrics/mAP50(B)\\n")
    (run / "epochs").write_text(flag("--epochs"))
epochs, asked = int((run / "epochs").read_text()), []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
if plan == "ranks":
    code = "import time; time.sleep(300)"
    ranks = [subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "RANK": str(r)}) for r in range(2)]
if plan == "fails":
    sys.exit("out of luck")
for epoch in range(len(table.read_text().splitlines()) - 1, epochs):
    time.sleep(float(os.environ["PACE"]))
    drift = 1e-5 if plan == "drifts" and resumed else 0.0
    with table.open("a") as file:
        file.write(f"{epoch}, {1 / (epoch + 1) + drift:.5f}, 2, 3, 0.25\\n")
    if plan == "ranks":
        if ranks[1].poll() is not None:
            print("rank 1 on here is gone" if os.environ.get("SPEAKS") else "bye", flush=True)
            ranks[0].kill()
            sys.exit(70)
    if asked and epoch + 1 < epochs:
        sys.exit(143)
(run / "weights" / "best.pt").touch()
'''  # noqa: E501
SLOW = "0.3"
"""Seconds of an epoch of a run that has to be caught in the middle."""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    stand_in = tmp_path / "train.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(gpu_runs, "COMMAND", (sys.executable, str(stand_in)))
    monkeypatch.setenv("PACE", "0.02")
    (tmp_path / "data.yaml").touch()
    return Job(
        tmp_path / "notes", tmp_path / "work", 40, False, tmp_path / "data.yaml", time.monotonic()
    )


def taken(part: Callable[[Job], None], job: Job) -> list[dict[str, Any]]:
    part(job)
    return read_notes(job.notes)


def test_bccd_is_read_in_every_precision(job: Job) -> None:
    *runs, compared = taken(gpu_runs.bccd, job)
    assert [item["name"] for item in runs] == [
        "BCCD, zero1_fp32",
        "BCCD, zero1_bf16",
        "BCCD, zero2_fp16",
    ]
    assert all(
        item["facts"]["epochs"] == 12 and item["facts"]["best mAP50"] == 0.25 for item in runs
    )
    assert not any(item["doubts"] or "failed" in item for item in (*runs, compared))


def test_bccd_is_skipped_where_it_is_not_at_hand(job: Job) -> None:
    job.data = job.work / "nowhere.yaml"
    (item,) = taken(gpu_runs.bccd, job)
    assert item["skipped"] == f"the data set is not there ({job.data}); --data names another place"


def test_runs_that_are_not_over_in_time_are_read_as_they_are(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACE", SLOW)
    job.seconds = gpu_runs.RESERVE + 2
    first = taken(gpu_runs.bccd, job)[0]
    assert 0 < first["facts"]["epochs"] < 12
    assert first["doubts"][0].startswith(
        f"exit status None after {first['facts']['epochs']} of 12 epochs"
    )


@pytest.mark.parametrize(("plan", "doubts"), [("", 0), ("drifts", 3)])
def test_a_resumed_run_is_compared_digit_by_digit(
    job: Job, plan: str, doubts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN", plan)
    monkeypatch.setenv("PACE", SLOW)
    compared: list[Path] = []
    monkeypatch.setattr(
        gpu_runs, "_same_weights", lambda item, one, other: compared.extend([one, other])
    )
    (item,) = taken(gpu_runs.resume, job)
    assert "failed" not in item, item
    assert (item["facts"]["exit status after SIGTERM"], item["facts"]["exit status, resumed"]) == (
        143,
        0,
    )
    assert 1 <= item["facts"]["epochs in results.csv then"] < 4
    assert len(item["doubts"]) <= doubts and bool(item["doubts"]) == bool(doubts), item["doubts"]
    assert all("differs in train/box_loss" in doubt for doubt in item["doubts"])
    assert compared == [job.work / "whole", job.work / "stopped"]


def test_weights_are_compared_to_the_last_bit(tmp_path: Path) -> None:
    import torch

    from benchmarks.gpu_job import Item

    for number, name in enumerate(("one", "other")):
        (tmp_path / name / "weights").mkdir(parents=True)
        net = torch.nn.Linear(2, 2)
        with torch.no_grad():
            net.weight.fill_(1.0 + 2.0**-23 * number)
            net.bias.zero_()
        torch.save({"model": net}, tmp_path / name / "weights" / "last.pt")
    same, another = Item("same"), Item("another")
    gpu_runs._same_weights(same, tmp_path / "one", tmp_path / "one")
    gpu_runs._same_weights(another, tmp_path / "one", tmp_path / "other")
    assert same.doubts == [] and another.doubts == ["last.pt differs by 1.19e-07"]


def test_a_run_that_fails_is_told_with_its_last_words(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN", "fails")
    (item,) = taken(gpu_runs.on_the_cpu, job)
    assert (
        item["doubts"]
        == ["exit status 1 after 0 of 1 epochs: out of luck", "no best.pt"][: len(item["doubts"])]
    )


@pytest.mark.parametrize("speaks", ["", "yes"])
def test_a_killed_rank_has_to_be_named(
    job: Job, speaks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAN", "ranks")
    monkeypatch.setenv("PACE", SLOW)
    monkeypatch.setenv("SPEAKS", speaks)
    for item in taken(gpu_ranks.death, job):
        assert "failed" not in item, item
        assert item["facts"]["exit status"] == 70
        assert item["facts"]["what was said"] == (["rank 1 on here is gone"] if speaks else [])
        assert item["doubts"] == ([] if speaks else ["nobody names rank 1: bye"])
