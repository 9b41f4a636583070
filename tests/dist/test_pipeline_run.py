"""A run on a grid of two stages x two replicas: trains, evaluates, is killed, resumes; and goes on
under other layouts.

    killed       through the real command, by SIGKILL in the middle of epoch 2
    whole        the same run, undisturbed
    resumed      the killed one to its end: has to equal `whole` bit for bit
    continued    the killed one under ZeRO-2, 1 x 2 stages, 4 x 1 stages, and from those back on the
                 grid

On four ranks and two; after the first command ranks are forked (tests.ranks), which saves their
imports.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests import forks
from tests.dist.commands import ranks_of, started, yolods
from tests.ranks import on_ranks
from tests.tiny import make_dataset
from yolods.checkpoint.read import Checkpoint
from yolods.checkpoint.verify import newest_in
from yolods.distributed.world import Ranks

pytestmark = pytest.mark.slow

IMAGES, EPOCHS, STEP = 48, 3, 8
"""Training images; epochs; images an optimizer step: 2 micro-batches of 4 over all replicas."""
WORDS = (
    *(
        "--model",
        "yolov5[0.1,0.1]",
        "--imgsz",
        "64",
        "--batch-size",
        "4",
        "--epochs",
        str(EPOCHS),
        "--workers",
        "0",
    ),
    *(
        "--noplots",
        "--project",
        "runs",
        "--name",
        "grid",
        "--set",
        f"nbs={STEP}",
        "--set",
        "ema_tau=10",
    ),
    *("--set", "warmup_epochs=0.5"),
)
OWN = {"checkpoint": {"every_steps": 1, "keep": 3}}
GRID = {"zero_optimization": {"stage": 1}, "pipeline": {"stages": 2}, "yolods": OWN}
"""Two stages; on four ranks two replicas."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "2x2": GRID,
    "1x2": {"pipeline": {"stages": 2, "activation_checkpoint_interval": 2}, "yolods": OWN},
    "1x4": {**GRID, "pipeline": {"stages": 4}},
    "zero2": {"zero_optimization": {"stage": 2}, "yolods": OWN},
}
"""By name, replicas x stages; without ZeRO where the JSON names none."""
LIMIT_SECONDS = 150.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything is in it: the data, a JSON for each layout, and the runs."""
    folder = tmp_path_factory.mktemp("grid")
    make_dataset(folder / "data", train=IMAGES, val=6)
    for name, content in LAYOUTS.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def killed(folder: Path) -> Path:
    """The run's folder after a rank was killed; the launcher ended the others."""
    words = [
        *yolods("train"),
        "--num_gpus",
        "4",
        "--max-restarts",
        "0",
        "--data",
        "data/tiny.yaml",
        *WORDS,
    ]
    run, deadline = folder / "runs" / "grid", time.monotonic() + LIMIT_SECONDS
    words += ["--deepspeed_config", "2x2.json"]
    with (
        open(folder / "screen", "w+") as screen,
        started(words, folder, screen, popen=forks.Popen) as process,
    ):
        while _position(run) < IMAGES + 2 * STEP:
            screen.seek(0)
            assert process.poll() is None and time.monotonic() < deadline, screen.read()
            time.sleep(0.02)
        ranks = ranks_of(process)
        assert len(ranks) == 4
        ranks[-1].kill()
        assert process.wait(30) != 0
        assert not [rank for rank in ranks if rank.is_running() and rank.status() != "zombie"]
    return run


def _position(run: Path) -> int:
    newest = newest_in(run / "checkpoints")
    with suppress(OSError, TypeError, ValueError):  # the next checkpoint may just take its place
        return Checkpoint(newest).progress["position"]
    return 0


Losses = dict[str, dict[str, float]]
JOBS = {
    2: (("on/zero2", "zero2"), ("on/1x2", "1x2")),
    4: (
        ("on/2x2", "2x2"),
        ("on/1x4", "1x4"),
        ("back/zero2", "2x2"),
        ("back/1x2", "2x2"),
        ("back/1x4", "2x2"),
    ),
}
"""By ranks: runs that go on, and under which layout; `on` from the killed run, `back` from what
`on` has saved."""


def go_on(ranks: Ranks, folder: str) -> Losses:
    """On a rank: the loss of the first step of all that goes on. On four, first the whole and the
    resumed run."""
    os.chdir(folder)
    if ranks.size == 2:
        _refused(ranks)
    if ranks.size == 4:
        given = ["--deepspeed_config", "2x2.json", "--data", "data/tiny.yaml", *WORDS]
        _command(["train", *given, "--project", "whole"])
        _command(["train", "--resume", "resumed/grid"])
    losses = {run: _first_step(ranks, run, layout) for run, layout in JOBS[ranks.size]}
    if ranks.size == 2:
        _command(["train", "--resume", "end/1x2", "--deepspeed_config", "1x2.json"])
    return losses


def _refused(ranks: Ranks) -> None:
    """Cuts that the model shows to be wrong end every rank alike, and rank 0 says why."""
    Path("wrong.json").write_text(
        json.dumps({"pipeline": {"stages": 2, "partition": ["24.detect"]}})
    )
    given = ["--data", "data/tiny.yaml", *WORDS, "--project", f"refused{ranks.rank}"]
    said = io.StringIO()
    with redirect_stderr(said), mock.patch.dict(os.environ, {"RANK": str(ranks.rank)}):
        _command(["train", *given, "--deepspeed_config", "wrong.json"], code=2)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    reason = (
        "error: pipeline: stage 1 (24.detect..24.detect) has nothing to train: all of its weights "
        "are frozen; "
    )
    assert [line.startswith(reason) for line in lines] == ([True] if ranks.is_main else [])


def _command(words: list[str], code: int = 0) -> None:
    from yolods.cli import main

    # The ranks are in one process group for as long as they live.
    with mock.patch("yolods.distributed.world.leave"):
        assert main(words) == code


class _Enough(Exception):
    """The first step has been taken."""


def _first_step(ranks: Ranks, folder: str, layout: str) -> dict[str, float]:
    """Save to `after` in the run's folder what was taken over, and take one step."""
    import argparse

    from yolods.checkpoint.store import CheckpointStore
    from yolods.config import add_train_arguments, build_run_config
    from yolods.distributed.store import open_store
    from yolods.training.start import start_run
    from yolods.watchdog.watchdog import Watchdog

    if ranks.is_main and folder.startswith("back/"):
        came = shutil.copytree(folder.replace("back/", "on/"), folder)
        shutil.rmtree(Path(came, "checkpoints"))
        Path(came, "after").rename(Path(came, "checkpoints"))
    ranks.barrier()
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    args = parser.parse_args(["--resume", folder, "--deepspeed_config", f"{layout}.json"])
    config = ranks.main_first(lambda: build_run_config(args, world_size=ranks.size, device="cpu"))
    kv_store = open_store(ranks)
    run = start_run(
        config, ranks, kv_store, Watchdog(kv_store, ranks, config.deepspeed.own.watchdog, None)
    )
    losses: list[dict[str, float]] = []
    take_step = run.engine.train_step

    def first_step(*given: Any, **named: Any) -> None:
        losses.append(take_step(*given, **named).loss)
        raise _Enough

    run.engine.train_step = first_step
    with run.telemetry:
        blueprint = run.selection.writer.blueprint
        model = {"architecture": blueprint.layers, "names": blueprint.names, "train_args": {}}
        CheckpointStore(Path(folder, "after"), ranks, keep=1, model=model).save(
            run.engine, run.progress
        )
        with suppress(_Enough):
            run.fit()
    run.engine.deepspeed.destroy()
    return losses[0]


@pytest.fixture(scope="module")
def continued(folder: Path, killed: Path) -> Losses:
    """What `go_on` returned, with runs in `on`, `back`, `whole` and `resumed` below the folder."""
    for copy in ("resumed/grid", "end/1x2", *(f"on/{layout}" for layout in LAYOUTS)):
        shutil.copytree(killed, folder / copy)
    found = on_ranks(
        "tests.dist.test_pipeline_run:go_on", (2, 4), timeout=LIMIT_SECONDS, folder=str(folder)
    )
    for size in found:
        assert all(other == found[size][0] for other in found[size])
    return found[2][0] | found[4][0]


@pytest.fixture
def whole(folder: Path, continued: Losses) -> Path:
    """The folder of the run that nothing happened to."""
    return folder / "whole" / "grid"


def test_a_grid_trains_evaluates_and_is_killed_in_the_middle_of_its_second_epoch(
    killed: Path,
) -> None:
    left = Checkpoint(newest_in(killed / "checkpoints"))
    assert IMAGES < left.progress["position"] < 2 * IMAGES
    assert left.progress["epochs_done"] == 1
    assert [list(place) for place in left.model["places"]] == [[0, 0], [1, 0], [0, 1], [1, 1]]
    (row,) = _rows(killed)
    assert 0 <= float(row["metrics/mAP50(B)"]) <= 1
    assert all(
        float(row[f"{split}/{item}_loss"]) > 0
        for split in ("train", "val")
        for item in ("box", "cls", "dfl")
    )
    assert (killed / "weights" / "best.pt").is_file()


def test_the_killed_run_ends_bit_for_bit_as_one_that_was_not(folder: Path, whole: Path) -> None:
    mine, other = (
        Checkpoint(newest_in(run / "checkpoints")) for run in (folder / "resumed" / "grid", whole)
    )
    assert mine.progress["position"] == other.progress["position"] >= EPOCHS * IMAGES
    assert mine.model["places"] == other.model["places"]
    for rank in range(4):
        states = [
            torch.load(each.folder / f"rank{rank}.pt", weights_only=False) for each in (mine, other)
        ]
        tensors = [_tensors({key: state[key] for key in STATES}) for state in states]
        assert len(tensors[0]) > 100
        assert not _differing(*tensors)
    weights = [
        torch.load(run / "weights" / "last.pt", weights_only=False)
        for run in (mine.folder.parents[1], whole)
    ]
    assert not _differing(*(_tensors(each["model"].state_dict()) for each in weights))
    rows = [[{**row, "time": ""} for row in _rows(run)] for run in (mine.folder.parents[1], whole)]
    assert len(rows[0]) == EPOCHS and rows[0] == rows[1]


STATES = ("masters", "optimizer", "ema", "statistics", "counters")


def _rows(run: Path) -> list[dict[str, str]]:
    with open(run / "results.csv", newline="") as file:
        return [
            {key.strip(): value.strip() for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _tensors(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries and lists, by where they are."""
    if isinstance(value, dict):
        return {
            at: leaf
            for key, part in value.items()
            for at, leaf in _tensors(part, f"{name}.{key}").items()
        }
    if isinstance(value, list | tuple):
        return {
            at: leaf
            for key, part in enumerate(value)
            for at, leaf in _tensors(part, f"{name}[{key}]").items()
        }
    return {name: value}


def _differing(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where they are not the same bit for bit."""
    found = sorted(mine.keys() ^ other.keys())
    for name in mine.keys() & other.keys():
        one, two = mine[name], other[name]
        same = (
            torch.equal(one, two)
            if isinstance(one, Tensor) and isinstance(two, Tensor)
            else one == two
        )
        found += [] if same else [name]
    return found


@pytest.mark.parametrize("layout", ["zero2", "1x2", "1x4", "2x2"])
def test_another_layout_takes_over_every_number(
    folder: Path, killed: Path, continued: Losses, layout: str
) -> None:
    """Masters, moments and average bit for bit; running statistics as the mean over the
    replicas."""
    before = Checkpoint(newest_in(killed / "checkpoints"))
    after = [Checkpoint(newest_in(folder / "on" / layout / "after"))]
    if layout == "2x2":
        after = [
            Checkpoint(newest_in(folder / "back" / other / "after"))
            for other in ("zero2", "1x2", "1x4")
        ]
    for each in after:
        for what in ("masters", "average"):
            assert not _differing(getattr(before, what)(), getattr(each, what)())
        for key in ("exp_avg", "exp_avg_sq"):
            assert not _differing(before.moment(key), each.moment(key))
        assert float(each.moments()["step"]) == float(before.moments()["step"]) > 0
        assert each.shared()["ema"]["updates"] == before.shared()["ema"]["updates"] > 0
        for average in (False, True):
            assert not _differing(
                before.statistics(average=average), each.statistics(average=average)
            )
        assert not _differing(before.frozen(), each.frozen())
        assert each.progress["position"] == before.progress["position"]
    counts = {"zero2": 2, "1x2": 2, "1x4": 4, "2x2": 4}
    assert all(len(each.model["places"]) == counts[layout] for each in after)


def test_the_loss_goes_on_where_it_was(continued: Losses) -> None:
    """One replica takes the micro-batches of both, one after the other."""
    assert len(continued) == 7
    for run, loss in continued.items():
        assert loss == pytest.approx(continued["on/2x2"], rel=1e-5), run


def test_a_run_that_went_on_with_one_replica_ends_well(folder: Path, whole: Path) -> None:
    """It takes the same micro-batches, but adds their gradients in another order, and steps drift
    apart by that."""
    ended, other = _rows(folder / "end" / "1x2"), _rows(whole)
    assert [row["epoch"] for row in ended] == [str(epoch + 1) for epoch in range(EPOCHS)]
    assert {**ended[0], "time": ""} == {**other[0], "time": ""}, (
        "the epoch before the kill is the same run's"
    )
    for mine, theirs in zip(ended[1:], other[1:], strict=True):
        for item in ("box", "cls", "dfl"):
            key = f"train/{item}_loss"
            assert 0.8 < float(mine[key]) / float(theirs[key]) < 1.25
    left = Checkpoint(newest_in(folder / "end" / "1x2" / "checkpoints"))
    assert left.progress["epochs_done"] == EPOCHS and left.model["places"] == [[0, 0], [1, 0]]


def test_its_weights_are_plain_files(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ultralytics import YOLO

    from yolods.cli import main

    last = Checkpoint(newest_in(whole / "checkpoints"))
    for words, name in ((["--live", "--fp32"], "live.pt"), ([], "average.pt")):
        assert main(["export", str(whole), "--to", str(folder / name), *words]) == 0
        assert f"after step {last.progress['step']}" in capsys.readouterr().out
    live = torch.load(folder / "live.pt", weights_only=False)["model"].state_dict()
    assert not _differing(last.masters(), {name: live[name] for name in last.masters()})
    average, written = (
        torch.load(file, weights_only=False)["model"].float().state_dict()
        for file in (folder / "average.pt", whole / "weights" / "last.pt")
    )
    counts = {name for name in written if name.endswith("num_batches_tracked")}
    assert not _differing(
        *({name: state[name] for name in state.keys() - counts} for state in (average, written))
    )
    for file in (whole / "weights" / "best.pt", folder / "average.pt"):
        results = YOLO(file).predict(torch.rand(1, 3, 64, 64), imgsz=64, verbose=False)
        assert results[0].names == {0: "colour0", 1: "colour1"}
