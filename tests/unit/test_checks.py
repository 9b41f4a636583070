"""Checks of many files: the same blocks from one process and from several, and from an earlier
check."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from ultralytics.data.utils import img2label_paths

from tests.tiny import make_dataset
from yolods.data.index import checks
from yolods.data.index.builds import IndexStore
from yolods.data.index.checks import Earlier, FilePair, check_pairs, scan_workers
from yolods.data.index.freshness import CHANGE_COLUMNS
from yolods.errors import UserError

TRIANGLES = "0 0.1 0.1 0.9 0.2 0.5 0.8\n1 0.1 0.1 0.9 0.2 0.5 0.8 0.3 0.4\n"


@pytest.fixture
def pairs(tmp_path) -> list[FilePair]:
    """Image files and labels: with polygons, a fault, without labels, and damaged."""
    yaml = make_dataset(tmp_path / "set", train=8)
    files = [str(yaml.parent / f"images/train/{number:03}.jpg") for number in range(8)]
    found = [FilePair(os.path.basename(file), file, img2label_paths([file])[0]) for file in files]
    with open(found[1].label, "w") as stream:
        stream.write(TRIANGLES)
    with open(found[2].label, "a") as stream:
        stream.write("words\n")
    os.unlink(found[3].label)
    with open(found[4].image, "w") as stream:
        stream.write("no image")
    return found


def blocks_of(pairs, workers=1, earlier=None):
    seen = []
    blocks = list(check_pairs(pairs, None, earlier, workers, seen.append))
    assert sum(seen) == len(pairs)
    return blocks


def index_of_blocks(blocks, folder):
    store = IndexStore(folder)
    with store.build(CHANGE_COLUMNS) as writer:
        for block in blocks:
            writer.add(block)
    return store.newest()


def same(one, other) -> bool:
    columns = [(one.columns[name], other.columns[name]) for name in one.columns.names]
    return (
        all(np.array_equal(a, b) for a, b in columns)
        and one.problems() == other.problems()
        and one.counts == other.counts
    )


def test_several_processes_find_what_one_does_in_the_same_order(pairs, tmp_path, monkeypatch):
    alone = index_of_blocks(blocks_of(pairs), tmp_path / "a")
    monkeypatch.setattr(checks, "ALONE", 0)
    monkeypatch.setattr(checks, "CHUNK", 3)
    blocks = blocks_of(pairs, workers=2)
    assert [len(block.ids) for block in blocks] == [3, 3, 2]
    assert same(index_of_blocks(blocks, tmp_path / "b"), alone)
    assert [row for row, _ in alone.problems()] == [2, 4]


def test_an_edit_that_hides_itself_shows_in_the_last_change(pairs, tmp_path):
    """Size and time of modification are as before."""
    index = index_of_blocks(blocks_of(pairs), tmp_path / "a")
    before = os.stat(pairs[5].label)
    with open(pairs[5].label, "r+") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write({"0": "1", "1": "0"}[first])
    os.utime(pairs[5].label, ns=(before.st_atime_ns, before.st_mtime_ns))
    usual = index_of_blocks(blocks_of(pairs, earlier=Earlier(index)), tmp_path / "b")
    every = index_of_blocks(blocks_of(pairs, earlier=Earlier(index, every=True)), tmp_path / "c")
    anew = index_of_blocks(blocks_of(pairs), tmp_path / "d")
    assert np.array_equal(usual.columns["box"], index.columns["box"])
    assert not np.array_equal(every.columns["box"], index.columns["box"])
    assert same(every, anew)


def test_only_files_that_have_changed_are_read_again(pairs, tmp_path, monkeypatch):
    index = index_of_blocks(blocks_of(pairs), tmp_path / "a")
    os.utime(pairs[5].label, ns=(1, 1))
    read = []
    monkeypatch.setattr(
        checks, "check_pair", lambda *a, real=checks.check_pair: read.append(a[0]) or real(*a)
    )
    again = index_of_blocks(blocks_of(pairs, earlier=Earlier(index)), tmp_path / "b")
    assert read == [pairs[5].image]
    stat = again.columns["stat"][5, 3]
    assert stat == 1 and again.problems() == index.problems() and again.counts == index.counts
    added = [FilePair("new", pairs[0].image, pairs[0].label), *pairs[1:]]
    read.clear()
    blocks_of(added, earlier=Earlier(again))
    assert read == [pairs[0].image], "a row is found by its identity"


def test_a_process_that_dies_is_told(pairs, monkeypatch):
    here = os.getpid()

    def die(chunk, **_):
        assert os.getpid() != here, "the work is another process's"
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(checks, "ALONE", 0)
    monkeypatch.setattr(checks, "CHUNK", 3)
    monkeypatch.setattr(checks, "_check", die)
    with pytest.raises(UserError, match="a process that checks files died"):
        blocks_of(pairs, workers=2)


def test_workers_are_the_cores_of_the_host_that_this_process_may_use():
    cores = len(os.sched_getaffinity(0))
    assert scan_workers(1) == min(cores, 32) and scan_workers(1000) <= (os.cpu_count() or 1)
