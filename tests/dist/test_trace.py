"""Traces of real runs: the file, that it changes no number, and that it leaves the run alone."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import forks
from tests.dist.commands import SMALL, kill, started, wait_for
from tests.tiny import make_dataset
from tests.traced import SCHEMA, complete, covered, faults_of, overlaps, tracks
from yolods.plan.zero_bubble import passes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRACED = (4, 5, 6)
"""Steps of a run that traces three: those after the warm-up."""
GRID = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "zero_optimization": {"stage": 1},
    "pipeline": {"stages": 2},
}
ZERO1 = {"gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1}}
ALWAYS = {
    "steps",
    "loader",
    "forward",
    "backward",
    "verdict and average",
    "optimizer",
    "between steps",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs lie."""
    found = tmp_path_factory.mktemp("traced")
    make_dataset(found / "data", train=24, val=2)
    (found / "grid.json").write_text(json.dumps(GRID))
    bubble = {**GRID, "train_micro_batch_size_per_gpu": "auto"}
    bubble["pipeline"] = {"stages": 2, "schedule": "zb"}
    (found / "bubble.json").write_text(json.dumps(bubble))
    (found / "zero1.json").write_text(json.dumps(ZERO1))
    return found


def ended(words: Sequence[str], folder: Path) -> str:
    """The screen of a command that ends well."""
    screen = folder / f"screen-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "yolods", *words]
    with open(screen, "w") as out, started(command, folder, out, popen=forks.Popen) as process:
        assert process.wait(150) == 0, screen.read_text()
    return screen.read_text()


def train(
    folder: Path, name: str, layout: str, ranks: int, *more: str, epochs: int = 4
) -> tuple[Path, str]:
    """Train epochs of three steps under ZeRO-1, and of one or two in a pipeline; returns the run
    and its screen."""
    words = ["launch", "train", "--num_gpus", str(ranks), "--data", "data/tiny.yaml", *SMALL]
    words += ["--epochs", str(epochs), "--set", "nbs=16", "--deepspeed_config", f"{layout}.json"]
    screen = ended([*words, "--noplots", "--noval", "--name", name, *more], folder)
    return folder / "runs" / name, screen


def read(run: Path) -> dict[str, Any]:
    """The trace of a run, which is valid."""
    document = json.loads((run / "trace.json").read_text())
    assert faults_of(document, SCHEMA) == []
    assert overlaps(document) == []
    with open(run / "trace.png", "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    assert not list(run.glob(".trace*"))
    return document


def check_whole(document: dict[str, Any], ranks: int, steps: Sequence[int] = TRACED) -> None:
    """Every step of every rank has its parts, and they add up to it."""
    shares = covered(document)
    assert set(shares) == {(rank, step) for rank in range(ranks) for step in steps}
    assert all(0.98 <= share <= 1.0 + 1e-6 for share in shares.values()), shares
    names = tracks(document)
    for rank in range(ranks):
        (process,) = (
            event["args"]["name"]
            for event in document["traceEvents"]
            if event["name"] == "process_name" and event["pid"] == rank
        )
        for step in steps:
            found = {
                names[event["pid"], event["tid"]]
                for event in complete(document)
                if event["pid"] == rank and event["args"].get("step") == step
            }
            # In a pipeline only the first stage reads images.
            assert found >= (ALWAYS - (set() if "stage 0" in process else {"loader"})), process


def losses(run: Path) -> list[list[str]]:
    """What results.csv says, without the time."""
    with open(run / "results.csv", newline="") as file:
        rows = list(csv.reader(file))
    return [
        [cell for cell, name in zip(row, rows[0], strict=True) if "time" not in name]
        for row in rows
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(run / "weights" / "last.pt", weights_only=False)
    return saved["model" if saved.get("ema") is None else "ema"].state_dict()


def files(run: Path) -> Iterator[tuple[str, str, int]]:
    """All files of a run outside of trace/: name, contents, time."""
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.relative_to(run).parts[0] != "trace":
            data = hashlib.sha256(path.read_bytes()).hexdigest()
            yield str(path), data, path.stat().st_mtime_ns


def test_a_grid_of_stages_and_replicas(folder: Path) -> None:
    run, screen = train(folder, "grid", "grid", 4, "--trace", "3")
    document = read(run)
    check_whole(document, 4)
    names = tracks(document)
    passes = [
        (event["pid"], event["args"]["step"], names[event["pid"], event["tid"]])
        for event in complete(document, "part")
        if event["name"].split()[0] in ("forward", "backward")
    ]
    for rank in range(4):
        for step in TRACED:
            assert passes.count((rank, step, "forward")) == 4
            assert passes.count((rank, step, "backward")) == 4
    kinds = {name for name in names.values() if name.startswith("collectives")}
    assert kinds >= {"collectives: boundary", "collectives: reduce", "collectives: ours"}
    assert {"neighbouring stages", "waits for others"} <= set(names.values())
    sent = [event["args"] for event in complete(document, "collective")]
    assert all(each["waited_us"] <= each["still_us"] + 1e-3 for each in sent)
    assert any(each["bytes"] > 0 and each.get("peer") is not None for each in sent)
    errors = [each["error_us"] for each in document["otherData"]["clocks"]]
    # One host has one clock; how far its ranks may seem apart depends on the machine's load.
    assert errors[0] == 0 and all(0 < error < 100_000 for error in errors[1:])
    lines = screen.splitlines()
    (head,) = (place for place, line in enumerate(lines) if line.startswith("rank  forward"))
    for rank, line in enumerate(lines[head + 1 : head + 5]):
        name, *cells = line.split()
        assert name == str(rank)
        assert sum(float(cell.rstrip("%")) for cell in cells) == pytest.approx(100, abs=0.5)
    assert "what holds the run back: " in screen and "trace.json: open it at" in screen
    # The same run without a trace has the same losses and weights, bit for bit.
    plain, _ = train(folder, "plain-grid", "grid", 4)
    check_same(run, plain)


def check_same(run: Path, plain: Path) -> None:
    """Two runs have the same numbers."""
    assert not (plain / "trace.json").exists()
    assert losses(run) == losses(plain)
    one, other = weights(run), weights(plain)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_parts_of_zero_bubble_are_apart(folder: Path) -> None:
    run, _ = train(folder, "bubble", "bubble", 2, "--trace", "2")
    document = read(run)
    check_whole(document, 2, (4, 5))
    names = tracks(document)
    weights = [
        event
        for event in complete(document, "part")
        if names[event["pid"], event["tid"]] == "weights' part of backward" and event["pid"] == 1
    ]
    divided = sum(kind == "W" for kind, _ in passes(2, 1, 4))
    assert divided and len(weights) == 2 * divided
    assert document["otherData"]["schedule"] == "zb"


def test_zero_on_two_ranks_and_a_trace_of_the_finished_run(folder: Path) -> None:
    run, _ = train(folder, "zero", "zero1", 2, "--trace", "3", epochs=3)
    document = read(run)
    check_whole(document, 2)
    assert {"collectives: reduce", "collectives: gather"} <= set(tracks(document).values())
    # On the ranks of the run, although nobody types how many.
    before = list(files(run))
    screen = ended(["trace", "runs/zero", "--steps", "2", "--epoch", "2"], folder)
    assert list(files(run)) == before
    assert sorted(each.name for each in (run / "trace").iterdir()) == ["trace.json", "trace.png"]
    document = read(run / "trace")
    steps = sorted({step for _, step in covered(document)})
    check_whole(document, 2, steps)
    assert len(steps) == 2 and f"traced steps {steps[0]} to {steps[1]}: " in screen
    assert "starting a trace on 2 ranks" in screen
    # Once more, by the launcher's word, over the files of the first one.
    ended(["launch", "trace", "runs/zero", "--num_gpus", "2", "--steps", "1"], folder)
    assert len({step for _, step in covered(read(run / "trace"))}) == 1
    assert list(files(run)) == before


def test_one_rank(folder: Path) -> None:
    run, screen = train(folder, "one", "zero1", 1, "--trace", "3", epochs=2)
    document = read(run)
    check_whole(document, 1)
    assert not any(name.startswith("collectives") for name in tracks(document).values())
    assert "clocks of the ranks agree to 0 us" in screen


def test_a_stop_or_a_kill_while_steps_are_traced_leaves_no_file(folder: Path) -> None:
    words = ["launch", "train", "--num_gpus", "2", "--data", "data/tiny.yaml", *SMALL]
    words += ["--epochs", "500", "--trace", "100", "--noplots", "--noval"]
    words += ["--set", "nbs=4", "--max_restarts", "0"]
    for name, stop in (("stopped", signal.SIGINT), ("killed", None)):
        screen, run = folder / f"{name}.screen", folder / "runs" / name
        command = [sys.executable, "-m", "yolods", *words, "--name", name]
        with open(screen, "w") as out, started(command, folder, out, popen=forks.Popen) as process:
            results = run / "results.csv"
            wait_for(
                lambda results=results: results.is_file() and results.read_text().count("\n") > 1,
                120,
                process,
                screen,
            )
            if stop is None:
                kill(process)
            else:
                process.send_signal(stop)
                assert process.wait(60) == 130, screen.read_text()
        assert "Traceback" not in screen.read_text()
        assert not [each for each in run.rglob("*") if "trace" in each.name]
