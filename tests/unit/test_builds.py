"""Builds of an index: the newest complete one counts, and old ones go in time."""

from __future__ import annotations

import os
import time

import pytest

from yolods.data.index.block import block_of
from yolods.data.index.builds import CURRENT, KEPT, IndexStore
from yolods.data.verify import CheckedPair


def build(store: IndexStore, name: str) -> None:
    with store.build() as writer:
        writer.add(block_of([CheckedPair(name, (1, 1), id=name)], [(0, 0, 0, 0)], [0]))


def test_the_newest_build_counts_and_an_open_one_stays_whole(tmp_path):
    store = IndexStore(tmp_path / "deep/index")
    assert store.newest() is None
    build(store, "one")
    opened = store.newest()
    build(store, "two")
    assert [*opened.ids] == ["one"] and [*store.newest().ids] == ["two"]
    assert len([*(tmp_path / "deep/index").iterdir()]) == 3, "a run may have mapped the first"


def test_hosts_that_build_in_one_folder_at_the_same_time_do_not_meet(tmp_path, monkeypatch):
    """Both have written their build, and name it as the newest one."""
    replace, others = os.replace, [IndexStore(tmp_path)]

    def late(source, target):
        if others:
            build(others.pop(), "of the other host")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    build(IndexStore(tmp_path), "mine")
    assert not others and [*IndexStore(tmp_path).newest().ids] == ["mine"]


def test_what_a_kill_left_goes_in_time(tmp_path):
    store, left = IndexStore(tmp_path), tmp_path / ".currentabc.part"
    build(store, "one")
    left.write_text("half")
    build(store, "two")
    assert left.exists(), "its process may still be at work"
    os.utime(left, (0, 0))
    build(store, "three")
    assert not left.exists() and [*store.newest().ids] == ["three"]


def test_builds_that_no_run_can_still_have_are_removed(tmp_path):
    store = IndexStore(tmp_path)
    build(store, "one")
    old = tmp_path / (tmp_path / CURRENT).read_text()
    long_ago = time.time() - KEPT - 60
    os.utime(old, (long_ago, long_ago))
    build(store, "two")
    assert not old.exists() and [*store.newest().ids] == ["two"]


def test_a_build_that_failed_leaves_nothing_and_the_one_before_counts(tmp_path):
    store = IndexStore(tmp_path)
    build(store, "one")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), store.build():
        raise KeyboardInterrupt
    assert sorted(tmp_path.iterdir()) == before and [*store.newest().ids] == ["one"]


@pytest.mark.parametrize("damage", ["no column", "short column", "counts", "pointer"])
def test_a_damaged_build_is_none(tmp_path, damage):
    store = IndexStore(tmp_path)
    build(store, "one")
    folder = tmp_path / (tmp_path / CURRENT).read_text()
    if damage == "no column":
        (folder / "id_end.npy").unlink()
    elif damage == "short column":
        (folder / "shape.npy").write_bytes((folder / "shape.npy").read_bytes()[:-1])
    elif damage == "counts":
        (folder / "index.json").write_text('{"images": 1, "unknown": 2}')
    else:
        (tmp_path / CURRENT).write_text("elsewhere")
    assert store.newest() is None
