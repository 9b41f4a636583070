"""yolods.data.video.packing.cached: videos are packed once, by one process, whatever befalls it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections import namedtuple

import pytest

from tests.clips import look, numbered_set, packs
from tests.packs import flip
from tests.videos import shown_number
from yolods.data.pack.writer import PackWriter
from yolods.data.source import Unreadable
from yolods.data.spec import read_spec
from yolods.data.video.packing import cached as cached_module
from yolods.data.video.packing.cached import is_packed, pack_place
from yolods.data.video.packing.frame_set import FrameSet
from yolods.errors import UserError
from yolods.system.folders import cache_dir

Disk = namedtuple("Disk", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    return numbered_set(tmp_path / "set")


def test_another_process_that_packs_is_waited_for(root, monkeypatch, caplog):
    monkeypatch.setattr(cached_module, "PAUSE", 0.05)
    frames = FrameSet.of(read_spec(root / "set.yaml"), "train")
    place = pack_place(frames, "train")
    add, slow, begun = PackWriter.add, threading.Event(), threading.Event()

    def slowly(writer, stored):
        begun.set()
        slow.wait(10)
        add(writer, stored)

    monkeypatch.setattr(PackWriter, "add", slowly)
    child = os.fork()
    if not child:  # locks are a process's own
        slow_forever = threading.Timer(1.0, slow.set)
        slow_forever.start()
        look(root)
        os._exit(0)
    monkeypatch.undo()
    monkeypatch.setenv("YOLODS_CACHE", str(place.parents[2]))
    deadline = time.monotonic() + 10
    while not (place / "unfinished/settings.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with caplog.at_level(logging.INFO):
        found = look(root)
    assert os.waitpid(child, 0)[1] == 0
    assert len(found.labels) == 11
    assert [record.message for record in caplog.records] == [
        "train: another process packs its videos; waiting for it"
    ]


def test_a_damaged_pack_in_the_cache_is_made_again(root, caplog):
    look(root)
    (place,) = packs()
    (place / "00000.tar").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(look(root).labels) == 11
    (line,) = (record.message for record in caplog.records)
    assert line.endswith("00000.tar: No such file or directory; the videos are packed again")
    flip(place / "00000.tar", 600)
    with pytest.raises(Unreadable, match="wrong checksum"):
        look(root).source.read(0)


def test_a_killed_start_is_gone_on_with(root, monkeypatch, caplog):
    monkeypatch.setattr(cached_module, "SHARD_LENGTH", 30_000)
    add, left = PackWriter.add, [8]

    class Killed(BaseException):
        pass

    def until(writer, stored):
        left[0] -= 1
        if not left[0]:
            raise Killed
        add(writer, stored)

    monkeypatch.setattr(PackWriter, "add", until)
    with pytest.raises(Killed):
        look(root)
    monkeypatch.setattr(PackWriter, "add", add)
    with caplog.at_level(logging.INFO):
        found = look(root)
    assert re.search("about [0-9]+ KiB, of which [1-9][0-9] KiB are done", caplog.text)
    assert [shown_number(found.source.read(row)) for row in range(11)] == [*range(6), *range(5)]


def test_a_disk_without_room_is_told_before(root, monkeypatch):
    monkeypatch.setattr(cached_module.shutil, "disk_usage", lambda _: Disk(1, 1, 1000))
    with pytest.raises(UserError, match=r"for 11 frames \+ val .* for 3 frames\), 1000 B are free"):
        look(root)
    assert packs() == []


def test_a_disk_that_is_full_or_may_not_be_written_is_told(root, cache, monkeypatch):
    def full(writer, stored):
        raise OSError(28, "No space left on device", "00000.tar")

    monkeypatch.setattr(PackWriter, "add", full)
    with pytest.raises(UserError, match=r"00000.tar: No space left on device, and the frames"):
        look(root)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(cache / "videos"))

    monkeypatch.setattr(cached_module, "PackWriter", denied)
    with pytest.raises(UserError, match=r"/videos: Permission denied, and the frames of videos"):
        look(root)


def test_packs_that_no_start_has_opened_for_long_are_named(root, caplog):
    look(root, "val")
    (old,) = packs()
    os.utime(old.parent, (0, 0))
    with caplog.at_level(logging.INFO):
        look(root)
    assert "packs there that no start has opened for 30 days have " in caplog.text
    look(root, "val")
    assert time.time() - old.parent.stat().st_mtime < 60


def test_faults_of_validation_videos_are_told_before_training_videos_are_packed(root):
    shutil.rmtree(root / "more/labels/v")
    (root / "labels/a/000000.txt").rename(root / "labels/a/000006.txt")
    with pytest.raises(UserError) as caught:
        look(root)
    train, val = str(caught.value).splitlines()
    assert "labels frame 6" in train and "v.mp4: has no labels" in val
    assert packs() == []
    with pytest.raises(UserError) as caught:
        look(root, "val")
    assert str(caught.value) == val


def test_the_place_of_a_pack(root):
    frames = FrameSet.of(read_spec(root / "set.yaml"), "train")
    assert pack_place(frames, "train") == cache_dir() / "videos" / frames.digest / "train.pack"
    assert not is_packed(frames, "train")
    look(root)
    assert is_packed(frames, "train")
