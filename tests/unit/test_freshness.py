"""Which change of files, folders and lists is found, and what a large set leaves unseen."""

from __future__ import annotations

import os

import pytest

from tests.indexes import image_files
from yolods.data.index import freshness
from yolods.data.index.freshness import Surroundings, change, parents, surroundings


@pytest.fixture
def split(tmp_path):
    """Files of a split, and a function that says what has changed."""
    (tmp_path / "images").mkdir()
    files = [str(tmp_path / f"images/{number}.jpg") for number in range(4)]
    listed = tmp_path / "list.txt"
    for file in (*files, listed):
        with open(file, "w") as stream:
            stream.write("x")
    source = image_files(files, tmp_path)
    before = surroundings([str(tmp_path), *parents(files)], [str(listed)])

    def changed(every: bool = False) -> str:
        kept = Surroundings(**before.as_dict())
        return change(source.index, kept, lambda row: (files[row], "gone"), every=every)

    return files, listed, changed


def test_nothing_has_changed(split):
    assert split[2]() == split[2](every=True) == ""


def test_a_file_that_was_written_again_in_place(split):
    files, _, changed = split
    os.utime(files[2], ns=(1, 1))
    assert changed() == files[2]


def test_a_file_that_was_written_again_with_its_old_time_shows_on_request(split):
    files, _, changed = split
    before = os.stat(files[2])
    with open(files[2], "w") as stream:
        stream.write("y")
    os.utime(files[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed() == ""
    assert changed(every=True) == files[2]


def test_a_file_that_came_and_one_that_went(split, tmp_path):
    *_, changed = split
    os.utime(tmp_path / "images", ns=(1, 1))  # whatever the clock's grain
    assert changed() == str(tmp_path / "images")


def test_a_list_that_was_edited(split):
    _, listed, changed = split
    listed.write_text("longer than before")
    assert changed() == str(listed)


def test_of_a_large_set_a_sample_is_looked_at_and_all_on_request(split, monkeypatch):
    files, _, changed = split
    monkeypatch.setattr(freshness, "ALL", 2)
    monkeypatch.setattr(freshness, "DRAWN", 2)
    os.utime(files[1], ns=(1, 1))
    found = {changed() for _ in range(64)}
    assert found == {"", files[1]}, "each start draws anew"
    assert changed(every=True) == files[1]


@pytest.mark.parametrize("slow", (0.0, 1.0), ids=("many-threads", "one-thread"))
def test_every_file_is_looked_at_however_fast_the_answers_are(split, monkeypatch, slow):
    """The last image lies beyond those that are tried first."""
    files, _, changed = split
    monkeypatch.setattr(freshness, "TRIED", 1)
    monkeypatch.setattr(freshness, "SLOW", slow)
    assert changed() == ""
    for file in files[:0:-1]:
        os.utime(file, ns=(1, 1))
        assert changed() == file
