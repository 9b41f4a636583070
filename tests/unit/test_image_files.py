"""Image files of a split: checked once, and again when something has changed."""

from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest

from tests.tiny import make_dataset
from yolods.data.index import image_files
from yolods.data.index.image_files import CheckOptions, first_of, open_files
from yolods.data.spec import read_spec
from yolods.errors import UserError


@pytest.fixture
def spec(tmp_path):
    return read_spec(make_dataset(tmp_path / "set"))


def built(monkeypatch) -> list[str]:
    """The splits that are checked from now on."""
    made = []
    real = image_files._build
    monkeypatch.setattr(
        image_files, "_build", lambda store, spec, split, *a: made.append(split)
        or real(store, spec, split, *a)
    )  # fmt: skip
    return made


def test_files_are_checked_once_and_after_a_change(spec, tmp_path, monkeypatch, caplog):
    made, folder = built(monkeypatch), tmp_path / "cache"
    for _ in range(2):
        opened = open_files(spec, "train", folder, 1.0, CheckOptions())
    assert made == ["train"] and opened.source.index.counts.images == 6
    extra = spec.root / "images/train/sub"
    extra.mkdir()
    os.link(spec.root / "images/train/000.jpg", extra / "000.jpg")
    trusted = open_files(spec, "train", folder, 1.0, CheckOptions(trusted=True))
    assert trusted.source.index.counts.images == 6 and made == ["train"]
    with caplog.at_level(logging.INFO):
        opened = open_files(spec, "train", folder, 1.0, CheckOptions(progress=True))
    assert opened.source.index.counts.images == 7 and made == ["train"] * 2
    assert "images/train has changed since the last check" in caplog.text


def test_what_the_yaml_names_twice_and_lines_that_name_nothing_are_remembered(spec, tmp_path):
    listed = spec.root / "list.txt"
    listed.write_text("./images/train/000.jpg\n" * 2 + "what\n")
    text = spec.yaml.read_text().replace("train: images/train", "train: list.txt")
    spec.yaml.write_text(text)
    for _ in range(2):
        opened = open_files(read_spec(spec.yaml), "train", tmp_path / "cache", 1.0, CheckOptions())
        assert opened.named_again == 1 and [each.line for each in opened.list_problems] == [3]


def test_of_a_large_set_a_sample_is_compared_and_that_is_said(spec, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(image_files, "ALL", 2)
    monkeypatch.setattr(image_files, "DRAWN", 2)
    open_files(spec, "train", tmp_path / "cache", 1.0, CheckOptions())
    with caplog.at_level(logging.INFO):
        open_files(spec, "train", tmp_path / "cache", 1.0, CheckOptions(progress=True))
        assert "2 of 6 images are compared" in caplog.text and "--check-data" in caplog.text
        caplog.clear()
        every = CheckOptions(progress=True, every=True)
        open_files(spec, "train", tmp_path / "cache", 1.0, every)
    assert caplog.text == ""


def test_a_copy_of_a_set_is_checked_again_and_used(spec, tmp_path):
    """Its files have their old sizes and times, and times of their last change of their own."""
    every, folder = CheckOptions(every=True), tmp_path / "cache"
    before = open_files(spec, "train", folder, 1.0, every).source.index
    for kind in ("images", "labels"):
        there = spec.root / kind / "train"
        times = os.stat(there)
        for file in sorted(there.iterdir()):
            shutil.copy2(file, file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)
        os.utime(there, ns=(times.st_atime_ns, times.st_mtime_ns))
    usual = open_files(spec, "train", folder, 1.0, CheckOptions()).source.index
    assert usual.columns.folder == before.columns.folder
    after = open_files(spec, "train", folder, 1.0, every).source.index
    assert after.columns.folder != before.columns.folder
    assert np.array_equal(after.columns["digest"], before.columns["digest"])
    again = open_files(spec, "train", folder, 1.0, every).source.index
    assert again.columns.folder == after.columns.folder


def test_without_room_in_the_cache_all_ranks_open_the_index_that_is_newer(
    spec, tmp_path, monkeypatch
):
    """An older one in the cache stood before it once, and ranks trained on labels of before."""
    folder, spare = tmp_path / "cache", tmp_path / "spare"
    monkeypatch.setattr(image_files, "temporary", lambda name: spare)
    open_files(spec, "train", folder, 1.0, CheckOptions())
    (spec.root / "labels/train/000.txt").write_text("")
    with monkeypatch.context() as full:
        build = image_files._build

        def without_room(store, *what):
            if store._folder == folder:
                raise OSError(28, "No space left on device")
            return build(store, *what)

        full.setattr(image_files, "_build", without_room)
        built = open_files(spec, "train", folder, 1.0, CheckOptions()).source.index
    trusted = CheckOptions(trusted=True)
    opened = open_files(spec, "train", folder, 1.0, trusted).source.index
    assert built.counts.backgrounds == 1 and opened.counts == built.counts
    (spec.root / "labels/train/001.txt").write_text("")
    again = open_files(spec, "train", folder, 1.0, CheckOptions()).source.index
    assert again.columns.folder.is_relative_to(folder) and not spare.exists()
    last = open_files(spec, "train", folder, 1.0, trusted).source.index
    assert last.counts == again.counts and last.counts.backgrounds == 2


def test_no_room_anywhere_is_a_fault_with_its_remedy(spec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(image_files, "temporary", lambda name: tmp_path / "file" / name)
    with pytest.raises(UserError, match=r"no room for the index of the data: .*YOLODS_CACHE"):
        open_files(spec, "train", tmp_path / "file/index", 1.0, CheckOptions())


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 10), (0.5, 5), (0.01, 1), (3, 3), (99, 10)])
def test_a_fraction_is_a_share_or_a_number(fraction, count):
    assert first_of(list(range(10)), fraction) == list(range(count))
