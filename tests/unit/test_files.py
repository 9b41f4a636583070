"""Files that are replaced whole: the earlier one or the new one, and nothing beside them."""

import os
import re
from pathlib import Path

import pytest

from yolods.system.files import read_at, replace_copy, replace_file, replace_text

ROOT = Path(__file__).parents[2]


def fail(*_):
    raise OSError(28, "No space left on device")


def test_a_file_is_replaced_in_every_way(tmp_path):
    path = tmp_path / "a.txt"
    replace_text(path, "ä\n")
    assert path.read_text("utf-8") == "ä\n"
    replace_file(path, lambda file: file.write(b"bytes"))
    assert path.read_bytes() == b"bytes"
    replace_copy(path, tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_bytes() == b"bytes"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_whatever_fails_the_earlier_file_stays_and_nothing_beside_it(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_contents_are_flushed_before_the_name_and_the_name_after_it(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("flush"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *where: (done.append("rename"), replace(*where)))
    for write in (
        lambda path: replace_text(path, "x"),
        lambda path: replace_file(path, lambda f: f.write(b"x")),
    ):
        write(tmp_path / "a")
        assert done == ["flush", "rename", "flush"]
        done.clear()


def test_files_are_replaced_by_one_helper_only():
    """`.part` names, and renames over a file, stand nowhere else; checkpoints rename whole
    folders."""
    own = re.compile(r"\.part[\"']|\.with_name\(f\"\.")
    found = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "yolods").rglob("*.py")
        if own.search(file.read_text())
    }
    assert found == {"yolods/system/files.py"}


def test_a_part_of_a_file_is_read_in_place_and_what_is_missing_is_counted(tmp_path):
    path, room = tmp_path / "a", bytearray(4)
    path.write_bytes(b"0123456789")
    assert read_at(path, 3, memoryview(room)) == 0 and room == b"3456"
    assert read_at(path, 8, memoryview(room)) == 2 and room[:2] == b"89"
    assert read_at(path, 20, memoryview(room)) == 4
