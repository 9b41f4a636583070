"""An epoch over frames of two videos that is killed twice: gone on with at another number of ranks,
and out of a pack. Every frame is trained on once, and in its place.

    ranks   2                       1            2
    data    videos, packed at       the same     `yolods pack` of them, under
            the first start                      the same yaml

Each kill is SIGKILL for every rank at once, in the middle of the epoch. The third video validates.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import pytest

from tests import forks
from tests.clips import make_clips, with_splits
from tests.dist.commands import kill
from tests.dist.taped import TapedStep, read_tape
from tests.forks import environment
from yolods.cli import main as command
from yolods.data.pack.sample import frame_identity
from yolods.data.sampler import permutation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

CLIPS = {"train/a.mp4": 130, "train/b.avi": 110, "val/c.mp4": 6}
FRAMES, BATCH, SEED = 240, 4, 3
WORDS = (
    *("train", "--data", "set/set.yaml", "--model", "yolov5[0.1,0.1]", "--imgsz", "64"),
    *("--epochs", "1", "--batch-size", str(BATCH), "--workers", "0", "--seed", str(SEED)),
    *("--set", f"nbs={BATCH}", "--set", "mosaic=0", "--noplots", "--deepspeed_config", "ds.json"),
)
RUN = "runs/exp"
PATIENCE_SECONDS = 60.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With videos, and a cache of its own."""
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    yaml = make_clips(tmp_path / "set", CLIPS)
    with_splits(yaml, "train: videos/train\nval: videos/val\n")
    content = {"zero_optimization": {"stage": 1}, "yolods": {"checkpoint": {"every_steps": 1}}}
    (tmp_path / "ds.json").write_text(json.dumps(content))
    return tmp_path


@contextmanager
def ranks(count: int, words: list[str], folder: Path, tape: str, port: int) -> Iterator[list]:
    """The processes of so many ranks, which are killed at the end."""
    env = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ExitStack() as stack, open(folder / f"{tape}.screen", "w") as screen:
        found = []
        for rank in range(count):
            who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            process = forks.Popen(
                [sys.executable, "-m", "tests.dist.taped", str(folder / tape), *words],
                cwd=folder,
                env={**env, **{name: str(value) for name, value in who.items()}},
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(kill, process)
            found.append(process)
        yield found


def steps(folder: Path, tape: str, count: int) -> list[list[TapedStep]]:
    """The steps that every rank has taken, by step."""
    tapes = [read_tape(folder / tape, rank) for rank in range(count)]
    return [list(each) for each in zip(*tapes, strict=False)]  # a killed rank may be a step ahead


def position(folder: Path) -> int:
    """Frames that were trained on before the newest checkpoint."""
    checkpoints = folder / RUN / "checkpoints"
    try:
        newest = checkpoints / (checkpoints / "latest").read_text()
        return json.loads((newest / "progress.json").read_text())["position"]
    except FileNotFoundError:
        return 0


def run(
    folder: Path, tape: str, count: int, words: list[str], port: int, until: int | None
) -> None:
    """Start ranks, and kill them when there is a checkpoint from this position on; None: wait for
    their end."""
    end = time.monotonic() + PATIENCE_SECONDS
    with ranks(count, words, folder, tape, port) as processes:
        while until is None or position(folder) < until:
            codes = [process.poll() for process in processes]
            shown = (folder / f"{tape}.screen").read_text()
            if until is None and codes == [0] * count:
                return
            assert all(code is None or (until is None and code == 0) for code in codes), shown
            assert time.monotonic() < end, shown
            time.sleep(0.02)


def kept(legs: list[list[list[TapedStep]]]) -> Iterator[list[TapedStep]]:
    """The steps of all legs that have an effect: those before the next leg's first."""
    for leg, later in zip(legs, [*legs[1:], None], strict=True):
        first = later[0][0].position if later else None
        yield from (step for step in leg if first is None or step[0].position < first)


def test_every_frame_is_trained_on_once(folder: Path, free_port: Callable[[], int]) -> None:
    run(folder, "one", 2, list(WORDS), free_port(), until=FRAMES // 6)
    assert len(list((folder / "cache/videos").rglob("pack.json"))) == 2
    middle = position(folder) + FRAMES // 6
    run(folder, "two", 1, ["train", "--resume", RUN], free_port(), until=middle)
    pack = ["pack", "--data", str(folder / "set/set.yaml"), "--out", str(folder / "out")]
    assert command(pack) == 0
    packed = ["train", "--resume", RUN, "--data", "out/set.yaml"]
    run(folder, "three", 2, packed, free_port(), until=None)

    legs = [steps(folder, tape, count) for tape, count in (("one", 2), ("two", 1), ("three", 2))]
    firsts = [leg[0][0].position for leg in legs]
    assert 0 == firsts[0] < firsts[1] < firsts[2] < FRAMES - BATCH
    tape = list(kept(legs))
    assert [step[0].position for step in tape] == list(range(0, FRAMES, BATCH))
    read = [list(chain.from_iterable(rank.images for rank in step)) for step in tape]
    names = [
        frame_identity(f"videos/{clip}", number)
        for clip, count in CLIPS.items()
        for number in range(count)
    ]
    order = [names[place] for place in permutation(SEED, 0, FRAMES)]
    assert list(chain.from_iterable(read)) == order
    log = (folder / RUN / "train.log").read_text()
    assert log.count("Resuming") == 2
    assert "train has" not in log and "val has" not in log, "the data count as changed"
    assert os.path.exists(folder / RUN / "weights/best.pt")
