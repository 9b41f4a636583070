"""Leaks of a data set as `yolods doctor` looks for them: a line, a sheet, hashes that are kept."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from tests.clips import make_clips, with_splits
from tests.tiny import make_dataset
from yolods.data.leaks import look
from yolods.data.leaks.look import HASHES_FILE, look_for_leaks
from yolods.data.spec import DataSpec, read_spec


@pytest.fixture
def spec(tmp_path) -> DataSpec:
    """A set of noisy pictures, no two of them alike."""
    yaml = make_dataset(tmp_path / "set", train=4, val=3)
    files = sorted((tmp_path / "set/images").rglob("*.jpg"))
    for number, file in enumerate(files):
        noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
        cv2.imwrite(str(file), cv2.resize(noise, (160, 120)))
    return read_spec(yaml)


def test_a_set_without_leaks_is_silent_and_is_hashed_once(spec, tmp_path, monkeypatch):
    assert look_for_leaks(spec, tmp_path / "cache") == []
    assert len([*(tmp_path / "cache").rglob(HASHES_FILE)]) == 2
    assert not (tmp_path / "cache/leaks").exists()
    monkeypatch.setattr(look, "hash_images", None)
    assert look_for_leaks(spec, tmp_path / "cache") == []


def test_a_copy_is_named_and_drawn_also_after_a_change(spec, tmp_path):
    look_for_leaks(spec, tmp_path / "cache")
    images = spec.root / "images"
    shutil.copy(images / "train/002.jpg", images / "val/001.jpg")
    line, sheet = look_for_leaks(spec, tmp_path / "cache")
    assert line.startswith("val: 1 of 3 images (33.3%) nearly repeat train images")
    assert "images/val/001.jpg and images/train/002.jpg (0 of 256 bits apart)" in line
    file = sheet.removeprefix("the nearest pairs side by side: ")
    assert cv2.imread(file).shape[2] == 3 and file.startswith(str(tmp_path / "cache/leaks"))


def test_a_large_set_is_hashed_when_it_is_asked_for(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(look, "AT_ONCE", 6)
    (line,) = look_for_leaks(spec, tmp_path / "cache")
    assert line.startswith("leaks between the splits of 7 images are looked for with --leaks")
    assert look_for_leaks(spec, tmp_path / "cache", asked=True) == []


def clips(root):
    """Three videos, two of which show the same."""
    yaml = make_clips(root, {"train/a.mp4": 4, "train/b.mp4": 4, "val/c.mp4": 3})
    for file in ("videos/val/c.mp4", "labels/val/c"):
        other = root / file.replace("val/c", "train/b")
        if other.is_dir():
            shutil.rmtree(root / file)
            shutil.copytree(other, root / file)
        else:
            (root / file).write_bytes(other.read_bytes() + b"\0")
    return with_splits(yaml, "train: videos/train\nval: videos/val\n")


def test_leaks_of_videos_are_told_by_video(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    spec = read_spec(clips(tmp_path / "set"))
    (line,) = look_for_leaks(spec, tmp_path / "cache")
    assert line.startswith("leaks between the splits are looked for once 3 videos have been packed")
    line, _ = look_for_leaks(spec, tmp_path / "cache", asked=True)
    assert "videos/val/c.mp4 and videos/train/b.mp4 (4 images, 0 of 256 bits apart" in line
    assert look_for_leaks(spec, tmp_path / "cache")[0] == line


def test_an_earlier_sheet_goes_with_the_leaks(spec, tmp_path):
    images = spec.root / "images"
    shutil.copy(images / "train/002.jpg", images / "val/001.jpg")
    file = look_for_leaks(spec, tmp_path / "cache")[1].rpartition(": ")[2]
    shutil.copy(images / "val/000.jpg", images / "val/001.jpg")
    assert look_for_leaks(spec, tmp_path / "cache") == []
    assert not (tmp_path / file).exists()
