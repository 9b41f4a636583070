"""Runs that are gone on with after something has changed: what each change is, and what has to come
of it.

    pristine/   data and a run that was left in the middle of its second epoch, of each layout
    work/       a copy of them, in which one thing is changed, and which is gone on with by
                `train --resume`

Every resume is asked of the launcher's check first, which starts nothing, and then of two ranks, as
plain `deepspeed` would: both have to refuse alike, or go on.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from tests.ranks import on_ranks
from tests.tiny import make_dataset
from yolods.distributed.world import Ranks

IMAGES, MORE, FEWER, EPOCHS, STEP, LEFT_AT = 12, 18, 6, 3, 4, 5
"""Training images, and after some were added or removed; epochs; images a step; after which step
the run was left."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"zero_optimization": {"stage": 1}},
    "ZeRO-3": {"zero_optimization": {"stage": 3}},
    "pipeline": {"zero_optimization": {"stage": 1}, "pipeline": {"stages": 2}},
}
RUN = "work/runs/base"
WORDS = (
    *(
        "--data",
        "work/data/tiny.yaml",
        "--model",
        "yolov5[0.1,0.1]",
        "--imgsz",
        "64",
        "--batch-size",
        str(STEP),
    ),
    *(
        "--epochs",
        str(EPOCHS),
        "--workers",
        "0",
        "--noplots",
        "--project",
        "work/runs",
        "--name",
        "base",
    ),
    *("--set", f"nbs={STEP}", "--set", "ema_tau=10", "--deepspeed_config", "layout.json"),
)
LIMIT_SECONDS = 300.0

Outcome = Literal["exact", "says", "refuses"]


def _names(*names: str) -> Callable[[Path], None]:
    def write(data: Path) -> None:
        text = f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n"
        (data / "tiny.yaml").write_text(text)

    return write


def _add(data: Path) -> None:
    for number in range(IMAGES, MORE):
        _copy(data, number, number)


def _remove(data: Path) -> None:
    for number in range(FEWER, IMAGES):
        for file in _files(data, number):
            file.unlink()


def _replace(data: Path) -> None:
    _copy(data, MORE - 1, 3)


def _reorder(data: Path) -> None:
    for file in _files(data, 0):
        file.rename(file.with_stem("900"))


def _copy(data: Path, source: int, target: int) -> None:
    """Image and label out of a larger set beside the data."""
    for one, other in zip(
        _files(data.parent.parent / "larger", source), _files(data, target), strict=True
    ):
        shutil.copyfile(one, other)


def _files(data: Path, number: int) -> tuple[Path, Path]:
    return (
        data / "images" / "train" / f"{number:03}.jpg",
        data / "labels" / "train" / f"{number:03}.txt",
    )


def _nothing(data: Path) -> None:
    pass


@dataclass(frozen=True)
class Change:
    """What is other when the run is gone on with."""

    outcome: Outcome
    """exact: it ends as if it had not been left. says: it ends well, and a line tells of the
    change. refuses: status 2 and a line with both values, before the start and on ranks, and
    nothing in the folder is touched."""
    line: str
    """What the line has in it."""
    apply: Callable[[Path], None] = _nothing
    """Changes the data."""
    flags: tuple[str, ...] = ()
    """Further flags of the resume."""
    images: int = IMAGES
    """Training images from there on."""


CHANGES: dict[str, Change] = {
    "nothing": Change("exact", ""),
    "class added": Change(
        "refuses",
        "names 3 classes (0 colour0, 1 colour1, 2 new), but the run in work/runs/base has 2"
        " classes (0 colour0, 1 colour1)",
        _names("colour0", "colour1", "new"),
    ),
    "class removed": Change(
        "refuses",
        "names 1 class (0 colour0), but the run in work/runs/base has 2 classes",
        _names("colour0"),
    ),
    "class renamed": Change(
        "says",
        "names 2 classes (0 colour0, 1 blue) instead of 2 classes (0 colour0, 1 colour1)",
        _names("colour0", "blue"),
    ),
    "classes reordered": Change(
        "refuses", "the same names have other ids", _names("colour1", "colour0")
    ),
    "images added": Change(
        "says", f"train has {MORE} images instead of {IMAGES}", _add, images=MORE
    ),
    "images removed": Change(
        "says", f"train has {FEWER} images instead of {IMAGES}", _remove, images=FEWER
    ),
    "image replaced": Change(
        "says", f"train has {IMAGES} images as before, but different ones", _replace
    ),
    "images reordered": Change(
        "says", f"train has {IMAGES} images as before, but in another order", _reorder
    ),
    "other imgsz": Change(
        "refuses", "--imgsz is 96, but the run in work/runs/base has 64", flags=("--imgsz", "96")
    ),
    "other batch": Change(
        "refuses",
        "--batch-size is 8, but the run in work/runs/base has 4",
        flags=("--batch-size", "8"),
    ),
    "other model": Change(
        "refuses",
        "--model is 'yolov5n', but the run in work/runs/base has 'yolov5[0.1,0.1]'",
        flags=("--model", "yolov5n"),
    ),
    "other seed": Change(
        "refuses", "--seed is 1, but the run in work/runs/base has 0", flags=("--seed", "1")
    ),
}


@dataclass(frozen=True)
class Played:
    """What came of a change."""

    asked: tuple[str, ...]
    """What the launcher's check refused."""
    status: int
    """Exit status on ranks."""
    shown: str
    """What rank 0 printed and logged."""
    touched: bool
    """Whether the run's configuration, results or checkpoints are other than before."""
    epochs: tuple[str, ...]
    """Rows of results.csv."""
    losses: tuple[float, ...]
    """Class losses of these rows."""
    progress: dict[str, Any]
    """Of the newest checkpoint."""
    state: dict[str, Any]
    """Masters and statistics of the newest checkpoint, whole."""


def play(layout: str, names: tuple[str, ...], folder: Path) -> dict[str, Played]:
    """Make the run of a layout in `folder`, whole ("undisturbed") and left, and go on with it after
    each change."""
    for place, train in (("pristine/data", IMAGES), ("larger", MORE)):
        make_dataset(folder / place, train=train, val=4)
    (folder / "layout.json").write_text(
        json.dumps({**LAYOUTS[layout], "yolods": {"checkpoint": {"every_steps": 1}}})
    )
    told = {"folder": str(folder), "names": list(names)}
    return on_ranks("tests.faults.resumes:go_on", (2,), timeout=LIMIT_SECONDS, **told)[2][0]


def wrong(change: Change, played: Played, whole: Played) -> list[str]:
    """Everything that should have been otherwise."""
    found = []
    if change.outcome == "refuses":
        for where, lines in (
            ("the launcher", played.asked),
            ("rank 0", tuple(played.shown.splitlines())),
        ):
            said = [line for line in lines if change.line in line]
            found += [] if len(said) == 1 and len(lines) == 1 else [f"{where} said {lines}"]
        found += [f"status {played.status}"] if played.status != 2 else []
        return found + (["the folder was touched"] if played.touched else [])
    found += [f"the launcher refused: {played.asked}"] if played.asked else []
    if played.status:
        return [*found, f"status {played.status}: {played.shown}"]
    found += [f"not said: {change.line}"] if change.line not in played.shown else []
    found += (
        [f"rows {played.epochs}"]
        if played.epochs != tuple(str(n + 1) for n in range(EPOCHS))
        else []
    )
    found += (
        [f"{played.progress['epochs_done']} epochs"]
        if played.progress["epochs_done"] != EPOCHS
        else []
    )
    if not EPOCHS * change.images <= played.progress["position"] < EPOCHS * change.images + STEP:
        found.append(f"{played.progress['position']} samples in {EPOCHS} epochs of {change.images}")
    if not all(math.isfinite(loss) and loss < 3 * max(whole.losses) for loss in played.losses):
        found.append(f"class losses {played.losses}, undisturbed {whole.losses}")
    if change.outcome == "exact" or change.line.startswith("names"):
        import torch

        found += [
            key for key, value in whole.state.items() if not torch.equal(value, played.state[key])
        ][:3]
    return found


def go_on(ranks: Ranks, folder: str, names: list[str]) -> dict[str, Played | None]:
    """On a rank: the run, and what comes of each change; rank 0 looks."""
    os.chdir(folder)
    if ranks.is_main:
        shutil.copytree("pristine/data", "work/data")
    ranks.barrier()
    _leave_in_the_middle(ranks)
    if ranks.is_main:
        left = _newest(RUN)[1]
        assert (left["step"], left["epochs_done"]) == (LEFT_AT, 1), left
        shutil.copytree(RUN, "pristine/run")
    played = {name: _play(ranks, CHANGES[name]) for name in names}
    ranks.barrier()
    if ranks.is_main:
        shutil.rmtree("work/data")
        shutil.copytree("pristine/data", "work/data")
    ranks.barrier()
    status = _command(["train", *WORDS, "--name", "whole"])
    return {**played, "undisturbed": _seen("work/runs/whole", (), status, "", touched=False)}


class _Enough(Exception):
    """The run is left."""


def _leave_in_the_middle(ranks: Ranks) -> None:
    """Train the run up to the middle of its second epoch, with a checkpoint there."""
    from yolods.engine.base import Engine

    take_step, taken = Engine.train_step, []

    def step(*given: Any, **named: Any) -> Any:
        if len(taken) == LEFT_AT:
            raise _Enough
        taken.append(1)
        return take_step(*given, **named)

    with mock.patch.object(Engine, "train_step", step), suppress(_Enough):
        _command(["train", *WORDS])
    ranks.barrier()


def _command(words: list[str]) -> int:
    from yolods.cli import main

    # The ranks are in one process group for as long as they live.
    with mock.patch("yolods.distributed.world.leave"):
        return main(words)


def _play(ranks: Ranks, change: Change) -> Played | None:
    """Change one thing, go on, and look at what is there."""
    if ranks.is_main:
        for place, source in (("work/data", "pristine/data"), (RUN, "pristine/run")):
            shutil.rmtree(place)
            shutil.copytree(source, place)  # with the times of the files
        change.apply(Path("work/data"))
    ranks.barrier()
    words = ["train", "--resume", RUN, *change.flags]
    asked = _asked(words) if ranks.is_main else ()
    before, log = _content(), Path(RUN, "train.log").stat().st_size
    ranks.barrier()
    said = io.StringIO()
    with redirect_stderr(said), mock.patch.dict(os.environ, {"RANK": str(ranks.rank)}):
        status = _command(words)
    ranks.barrier()
    with open(Path(RUN, "train.log"), encoding="utf-8") as file:
        file.seek(log)
        shown = said.getvalue() if status else said.getvalue() + file.read()
    played = (
        _seen(RUN, asked, status, shown, touched=_content() != before) if ranks.is_main else None
    )
    ranks.barrier()  # before the next change
    return played


def _seen(run: str, asked: tuple[str, ...], status: int, shown: str, *, touched: bool) -> Played:
    """With what is in the run's folder."""
    with open(Path(run, "results.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    state, progress = _newest(run)
    return Played(
        asked=asked,
        status=status,
        shown=shown,
        touched=touched,
        epochs=tuple(row["epoch"] for row in rows),
        losses=tuple(float(row["train/cls_loss"]) for row in rows),
        progress=progress,
        state=state,
    )


def _asked(words: list[str]) -> tuple[str, ...]:
    """What the launcher's check says, which starts nothing."""
    from yolods.commands.parsers import train_parser
    from yolods.errors import UserError
    from yolods.training.checks.preflight import check_train

    try:
        check_train(train_parser().read(words[1:]), 2, "cpu")
    except UserError as error:
        return tuple(str(error).splitlines())
    return ()


def _content() -> dict[str, tuple[int, int]]:
    """Sizes and times of what decides how a run is gone on with."""
    files = [
        Path(RUN, "config.json"),
        Path(RUN, "results.csv"),
        *Path(RUN, "checkpoints").rglob("*"),
    ]
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
        if file.is_file()
    }


def _newest(run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    from yolods.checkpoint.read import Checkpoint

    folder = Path(run, "checkpoints")
    newest = Checkpoint(folder / (folder / "latest").read_text())
    return {**newest.masters(), **newest.statistics(average=False)}, newest.progress
