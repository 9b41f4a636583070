"""What stands between a configuration and a run: seeds, sizes, disk space and limits."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolods import start
from yolods.data.splits import most_boxes
from yolods.errors import UserError


def split_of(*boxes: int) -> SimpleNamespace:
    return SimpleNamespace(scan=SimpleNamespace(labels=[{"cls": np.zeros((count, 1))} for count in boxes]))


@pytest.mark.parametrize(
    ("limit", "boxes", "expected"), [(300, (5, 10), 300), (300, (5, 412), 412), (100, (5, 412), 100), (500, (1,), 500)]
)
def test_the_default_limit_of_boxes_grows_with_the_data(limit, boxes, expected):
    assert most_boxes(limit, split_of(*boxes), split_of(1)) == expected


def schedule_of(samples: int, batch: int, accumulation: int = 4) -> SimpleNamespace:
    return SimpleNamespace(
        samples=samples, batch=batch, accumulation=accumulation, epochs=100, total_samples=100 * samples
    )


@pytest.mark.parametrize(
    ("samples", "ranks", "remedy"), [(5, 1, "--batch-size 5 --set nbs=20"), (5, 2, "--batch-size 4 --set nbs=16")]
)
def test_a_set_that_is_smaller_than_a_batch_is_told_what_that_means(samples, ranks, remedy):
    (line,) = start._small_set(schedule_of(samples, 16), ranks)
    assert line.endswith(remedy)
    assert "5 train images are fewer than a batch of 16" in line and "100 epochs are about 8 steps" in line


@pytest.mark.parametrize(("samples", "batch", "ranks"), [(16, 16, 1), (17, 16, 2), (3, 4, 4)])
def test_nothing_is_said_of_a_set_that_fills_a_batch_or_has_no_smaller_one(samples, batch, ranks):
    assert start._small_set(schedule_of(samples, batch), ranks) == []


def test_ultralytics_raises_the_same_limit():
    from ultralytics.models.yolo.detect import DetectionValidator

    args = SimpleNamespace(max_det=300)
    labels = [{"cls": np.zeros((412, 1))}]
    DetectionValidator._check_max_det(args, {"val": SimpleNamespace(labels=labels)})
    assert args.max_det == most_boxes(300, split_of(412))


@pytest.mark.parametrize(("free", "enough"), [(120_000_000, True), (119_999_999, False)])
def test_disk_space(tmp_path, monkeypatch, free, enough):
    """One million parameters x 40 bytes x (2 kept checkpoints and the one being written)."""
    monkeypatch.setattr(start.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if enough:
        start._check_space(tmp_path, 1_000_000, 2)
        return
    with pytest.raises(UserError) as caught:
        start._check_space(tmp_path, 1_000_000, 2)
    assert str(caught.value) == (
        f"{tmp_path}: 0.11 GiB are free, but 3 checkpoints of 1.0 M parameters x 40 bytes take 0.11 GiB; free some, or "
        "choose another --project"
    )


@pytest.mark.parametrize(("error", "reason"), [(PermissionError(13, "Permission denied"), "Permission denied")])
def test_a_folder_that_cannot_be_written(error, reason):
    with pytest.raises(UserError) as caught, start.writable(Path("runs/exp")):
        raise error
    assert str(caught.value) == f"runs/exp cannot be written: {reason}; choose another place by --project"


@pytest.mark.parametrize("seed", [0, 7])
def test_every_generator_is_seeded(seed):
    def draw():
        start.seed_everything(seed, deterministic=False)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()
    assert draw() != (start.seed_everything(seed + 1, deterministic=False), random.random())


@dataclass(frozen=True)
class Configured:
    """What `_share_cores` reads and changes."""

    workers: int
    notes: tuple[str, ...] = ("another",)


@pytest.mark.parametrize(
    ("asked", "cores", "ranks", "started"), [(2, 2, 2, 1), (8, 16, 2, 8), (8, 16, 4, 4), (0, 2, 2, 0), (1, 1, 8, 1)]
)
def test_fewer_workers_than_asked_for_are_told_of(monkeypatch, asked, cores, ranks, started):
    monkeypatch.setattr(start, "cores", lambda: cores)
    shared = start._share_cores(Configured(asked), ranks)
    assert shared.workers == started
    said = (f"--workers {asked}: a rank starts {started}, its share of this host's cores ({cores} / {ranks})",)
    assert shared.notes == ("another", *(said if started < asked else ()))
    assert start._share_cores(replace(shared, workers=asked), ranks).notes == shared.notes, "once, after a resume too"
