"""Which change of a data set the record of its samples tells."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.indexes import image_files, labels_of
from yolods.data.index.fingerprint import Samples, samples_of


def record(files, folder, boxes=()) -> Samples:
    """Of a split with these files, each with one box."""
    boxes = {place: (0, x, 0.5, 0.1, 0.1) for place, x in enumerate(boxes)}
    return samples_of(labels_of(image_files([str(file) for file in files], folder, boxes=boxes)))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "set"
    made.mkdir()
    for number in range(3):
        (made / f"{number}.jpg").write_bytes(b"x" * (10 + number))
        os.utime(made / f"{number}.jpg", ns=(10**18, 10**18))
    return made


def files(folder):
    return sorted(folder.iterdir())


def test_the_gravest_change_is_told(folder):
    before = record(files(folder), folder)
    assert record(files(folder), folder).change_from(before) == ""
    assert record(files(folder)[:2], folder).change_from(before) == "count"
    assert record(files(folder)[::-1], folder).change_from(before) == "order"
    assert record(files(folder), folder, (0.5, 0.4, 0.4)).change_from(before) == "content"
    os.utime(folder / "0.jpg", ns=(10**18 + 1, 10**18 + 1))
    assert record(files(folder), folder).change_from(before) == "times"
    (folder / "2.jpg").rename(folder / "3.jpg")
    assert record(files(folder), folder).change_from(before) == "names"
    (folder / "0.jpg").write_bytes(b"longer than before")
    assert record(files(folder), folder).change_from(before) == "content"


def test_a_set_that_was_moved_is_the_same(folder, tmp_path):
    before = record(files(folder), folder)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)  # with its times
    assert record(files(moved), moved).change_from(before) == ""


def test_a_file_that_is_gone_is_other_content(folder):
    listed = files(folder)
    before = record(listed, folder)
    (folder / "1.jpg").unlink()
    assert record(listed, folder).change_from(before) == "content"
    assert before.as_dict()["count"] == 3
