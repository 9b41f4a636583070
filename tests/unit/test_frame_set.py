"""yolods.data.video.packing.frame_set: which frames are used, with which labels and files."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.clips import numbered_clip
from yolods.data.spec import read_spec
from yolods.data.video.packing.frame_set import FrameSet
from yolods.errors import UserError

FRAMES, SHAPE = 12, (112, 144)
TEXT = "train: videos/a.mp4\nval: videos/b.mp4\nnames: [a]\n"


@pytest.fixture
def root(tmp_path):
    for name, frames in (("a", FRAMES), ("b", FRAMES + 1)):
        numbered_clip(tmp_path / f"set/videos/{name}.mp4", frames)
    return tmp_path / "set"


def frames_of(root, split="train", further="", stride=None):
    (root / "set.yaml").write_text(TEXT + further)
    return FrameSet.of(read_spec(root / "set.yaml"), split, stride)


def used(frames, count=FRAMES):
    return list(frames.read(0, count, SHAPE).pairs)


def test_every_labelled_frame_has_an_identity_and_its_boxes(root):
    frames = frames_of(root)
    assert frames.ids == ("videos/a.mp4",)
    pairs = frames.read(0, FRAMES, SHAPE).pairs
    assert [pair.id for pair in pairs.values()] == [
        f"videos/a.mp4#{number:06}" for number in range(FRAMES)
    ]
    assert [round(float(pair.rows[0, 1]) * 1024) for pair in pairs.values()] == list(range(FRAMES))


def test_a_stride_thins_the_training_split_only(root):
    assert used(frames_of(root, further="stride: 5\n")) == [0, 5, 10]
    assert len(used(frames_of(root, "val", "stride: 5\n"), FRAMES + 1)) == FRAMES + 1
    assert used(frames_of(root, further="stride: 5\n", stride=4)) == [0, 4, 8]
    assert len(used(frames_of(root, "val", stride=4), FRAMES + 1)) == FRAMES + 1


def test_what_is_not_labelled_or_cannot_be_read_is_left_out_and_noted(root):
    (root / "labels/a/000003.txt").unlink()
    (root / "labels/a/000005.txt").write_bytes(b"\xff\xfe\xff")
    found = frames_of(root).read(0, FRAMES, SHAPE)
    assert [n for n in range(FRAMES) if n not in found.pairs] == [3, 5]
    absent, unreadable = map(str, found.problems)
    assert "1 of 12 frames have no label file and are left out (frame 3)" in absent
    assert "000005.txt: label file cannot be read" in unreadable


def test_a_video_of_which_nothing_is_used_is_refused(root):
    for file in (root / "labels/a").iterdir():
        if int(file.stem) % 5 != 2:
            file.unlink()
    with pytest.raises(UserError, match="none of its 2 labelled frames is one of every 5th"):
        frames_of(root, further="stride: 5\nbase: 0\n").read(0, FRAMES, SHAPE)
    for file in (root / "labels/a").iterdir():
        file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"no frame can be used; the first problem: .*10 of 12"):
        frames_of(root, further="base: 0\n").read(0, FRAMES, SHAPE)


def test_faults_are_kept_for_the_survey(root):
    assert frames_of(root, further="channels: 1\n").faults == ()
    shutil.rmtree(root / "labels/a")
    frames = frames_of(root, further="channels: 4\n")
    channels, labels = frames.faults
    assert "channels: 4, but frames of videos have 3, or 1" in channels
    assert "a.mp4: has no labels" in labels and len(frames.digest) == 32


@pytest.mark.parametrize("name", ["videos/a.mp4", "labels/a/000004.txt"])
def test_the_digest_changes_with_every_file_and_with_how_it_is_used(root, name):
    first = frames_of(root).digest
    assert frames_of(root).digest == first
    others = {frames_of(root, further=f"{key}: 0\n").digest for key in ("base", "first_class")}
    others |= {frames_of(root, further="stride: 2\n").digest, frames_of(root, "val").digest}
    assert len(others | {first}) == 5
    times = (root / name).stat()
    os.utime(root / name, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert frames_of(root).digest not in others | {first}


def test_the_digest_does_not_change_with_the_place(root, tmp_path):
    first = frames_of(root).digest
    shutil.move(root, tmp_path / "moved")
    assert frames_of(tmp_path / "moved").digest == first


def test_a_sequences_text_is_part_of_the_digest(root):
    shutil.rmtree(root / "labels/a")
    text = root / "labels/a.txt"
    text.write_text("1,1,10,10,20,20,1,1,1\n")
    first = frames_of(root).digest
    text.write_text("1,1,10,10,20,20,1,1,1\n2,1,10,10,20,20,1,1,1\n")
    assert frames_of(root).digest != first
