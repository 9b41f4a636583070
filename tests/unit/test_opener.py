"""yolods.data.video.packing.opener: videos are packed into the cache once, and are a split."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest

from tests.clips import (
    NUMBERED_SPLITS,
    look,
    make_clips,
    numbered_clip,
    numbered_set,
    packs,
    with_splits,
)
from tests.videos import cut, shown_number
from yolods.data.index.fingerprint import samples_of
from yolods.data.pack.sample import frame_of
from yolods.data.scan import scan
from yolods.data.spec import read_spec
from yolods.data.video.packing import cached as cached_module
from yolods.data.video.packing import opener as opener_module
from yolods.data.video.packing import packer as packer_module
from yolods.data.video.packing.opener import unpacked_videos
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


def test_frames_of_videos_are_samples(root):
    found = look(root)
    assert found.summary == "11 images, 11 boxes, 0 backgrounds"
    assert found.index.ids[7] == "videos/b.avi#000001"
    assert [shown_number(found.source.read(row)) for row in range(11)] == [*range(6), *range(5)]
    assert found.source.place(found.index.ids[7]) == f"{root}/videos/b.avi frame 1"
    assert found.source.side is None
    again = pickle.loads(pickle.dumps(found.source))
    assert np.array_equal(again.read(3), found.source.read(3))


def test_a_later_start_and_the_other_ranks_find_the_pack(root, monkeypatch, caplog):
    first = look(root)
    monkeypatch.setattr(cached_module, "PackWriter", None)
    with caplog.at_level(logging.INFO):
        again = look(root)
    assert caplog.records == [] and [*again.index.ids] == [*first.index.ids]
    monkeypatch.setattr(opener_module, "FrameSet", None)
    trusted = look(root, trusted=True)
    assert trusted.source.place("videos/a.mp4#000002") == f"{root}/videos/a.mp4 frame 2"
    assert samples_of(trusted.labels) == samples_of(first.labels)


@pytest.mark.parametrize("name", ["videos/a.mp4", "labels/a/000002.txt"])
def test_a_file_that_changed_is_packed_anew(root, name):
    before, (first,) = samples_of(look(root).labels), packs()
    if name.endswith(".txt"):
        (root / name).write_text("")
    else:
        os.utime(root / name, ns=(0, 10**18))
    after = look(root)
    assert len(packs()) == 2 and first in packs()
    change = samples_of(after.labels).change_from(before)
    assert change == ("content" if name.endswith(".txt") else "times")


def test_identities_and_fingerprint_do_not_change_with_the_place_of_set_or_cache(
    root, tmp_path, monkeypatch
):
    before = look(root)
    kept = [*before.index.ids], samples_of(before.labels)
    shutil.move(root, tmp_path / "moved")
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "other"))
    after = look(tmp_path / "moved")
    assert ([*after.index.ids], samples_of(after.labels)) == kept
    assert after.source.place("videos/a.mp4#000000") == f"{tmp_path}/moved/videos/a.mp4 frame 0"


def test_every_fault_is_told_and_nothing_is_left(root):
    (root / "labels/a/000000.txt").rename(root / "labels/a/000006.txt")
    shutil.rmtree(root / "labels/b")
    numbered_clip(root / "videos/c.mp4", 4)
    cut(root / "videos/c.mp4", root / "videos/c.mp4")
    with pytest.raises(UserError) as caught:
        look(root)
    b, a, c = str(caught.value).splitlines()
    assert "b.avi: has no labels" in b and "labels frame 6" in a and "c.mp4: cut off" in c
    assert packs() == [] and list((cache_dir() / "videos").iterdir()) == []


def test_classes_outside_the_names_are_refused_before_anything_is_packed(root):
    (root / "labels/b/000002.txt").write_text("4 .5 .5 .1 .1\n")
    with pytest.raises(UserError, match=r"000002.txt:1: class id 4 is outside the 1 names"):
        look(root)
    assert packs() == []
    spec = read_spec(root / "set.yaml")
    assert scan(spec, "train", cache=cache_dir() / "index", single_cls=True).boxes == 11


def test_a_stride_thins_training_alone(root):
    (root / "set.yaml").write_text(NUMBERED_SPLITS + "stride: 2\n")
    assert [frame_of(each)[1] for each in look(root).index.ids] == [0, 2, 4, 0, 2, 4]
    assert [frame_of(each)[1] for each in look(root, "val").index.ids] == [0, 1, 2]


def test_videos_divided_by_video(tmp_path):
    yaml = make_clips(tmp_path / "set", {f"{n}.mp4": 3 + n for n in range(4)})
    yaml = with_splits(yaml, "videos: videos\nsplit: {val: 0.25, by: video}\n")
    train, val = (scan(read_spec(yaml), s, cache=cache_dir() / "index") for s in ("train", "val"))
    clips = [{frame_of(each)[0] for each in found.index.ids} for found in (train, val)]
    assert [len(each) for each in clips] == [3, 1] and not clips[0] & clips[1]
    assert len(train.labels) + len(val.labels) == 3 + 4 + 5 + 6


def test_what_videos_lack_is_told_once_and_stays_in_the_problems(root, monkeypatch, caplog):
    (root / "labels/a/000004.txt").unlink()
    frames = packer_module.Video.frames

    def odd(video, stride=1):
        yield from frames(video, stride)
        video.warnings.append(f"{video.path}: ends with 2 packets without a picture")

    monkeypatch.setattr(packer_module.Video, "frames", odd)
    with caplog.at_level(logging.WARNING):
        first, again = look(root), look(root)
    assert [record.message for record in caplog.records] == [
        f"{root}/videos/{name}: ends with 2 packets without a picture"
        for name in ("a.mp4", "b.avi")
    ]
    assert list(map(str, again.problems)) == list(map(str, first.problems))
    assert [str(each).partition(": ")[0] for each in first.problems] == [
        f"{root}/labels/a/NUMBER.txt",
        f"{root}/videos/a.mp4",
        f"{root}/videos/b.avi",
    ]


def test_what_would_be_packed(root):
    spec = read_spec(root / "set.yaml")
    assert [unpacked_videos(spec, split, 1) for split in ("train", "val", "test")] == [2, 1, 0]
    look(root)
    assert [unpacked_videos(spec, split, 1) for split in ("train", "val")] == [0, 1]
    shutil.rmtree(root / "labels/b")
    with pytest.raises(UserError, match=r"b.avi: has no labels"):
        unpacked_videos(spec, "train", 1)


def test_the_note_names_the_pack(root, cache):
    look(root)
    (note,) = (cache / "index").rglob("videos.json")
    known = json.loads(note.read_text())
    assert known["pack"] == str(packs()[0])
    assert known["videos"] == {f"videos/{n}": f"{root}/videos/{n}" for n in ("a.mp4", "b.avi")}
