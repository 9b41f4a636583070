"""yolods.data.video.packing.packer: each packed frame shows its number and has its labels, whatever
happened on the way."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest

from tests.clips import numbered_clip
from tests.packs import AS_IS, hashes, killed_at, steps_of
from tests.videos import cut, noisy, shown_number
from yolods.data.pack.manifest import pack_index, read_record
from yolods.data.pack.packed import PackedImages
from yolods.data.pack.sample import frame_of
from yolods.data.pack.writer import PackWriter
from yolods.data.spec import read_spec
from yolods.data.video.frames import Video
from yolods.data.video.packing import packer as packer_module
from yolods.data.video.packing.frame_set import FrameSet
from yolods.data.video.packing.packer import PackableFrames, frames_settings
from yolods.data.video.packing.survey import survey
from yolods.errors import UserError

COUNTS = {"a.mp4": 9, "b.avi": 7, "c.mkv": 8}
SMALL = 30_000
"""Bytes of a tar file that holds a few frames."""


@pytest.fixture
def root(tmp_path):
    for name, frames in COUNTS.items():
        numbered_clip(tmp_path / "set/videos" / name, frames)
    numbered_clip(tmp_path / "set/val/v.mp4", 3)
    return tmp_path / "set"


def samples_of(root, further="base: 0\n") -> PackableFrames:
    (root / "set.yaml").write_text(f"train: videos\nval: val\nnames: [a]\n{further}")
    frames = FrameSet.of(read_spec(root / "set.yaml"), "train")
    return PackableFrames(frames, survey(frames, AS_IS, any_class=False, workers=1))


def pack(root, folder, further="base: 0\n", seen=lambda _: None, **options) -> PackableFrames:
    samples = samples_of(root, further)
    options = {"further": samples.further, "shard_bytes": SMALL, **options}
    with PackWriter(folder, "train", AS_IS, **options) as writer:
        samples.pack(writer, 2, seen)
    return samples


def opened(folder) -> PackedImages:
    return PackedImages(folder, pack_index(folder), read_record(folder))


def test_every_frame_shows_its_number_and_has_its_box_and_group(root, tmp_path):
    seen = []
    samples = pack(root, tmp_path / "a.pack", seen=seen.append)
    source = opened(tmp_path / "a.pack")
    ids, columns = [*source.index.ids], source.index.columns
    assert len(ids) == len(samples) == sum(seen) == sum(COUNTS.values())
    numbers = [frame_of(each)[1] for each in ids]
    assert [shown_number(source.read(row)) for row in range(len(ids))] == numbers
    assert np.rint(columns["box"][:, 1] * 1024).astype(int).tolist() == numbers
    assert columns["group"].tolist() == [g for g, n in enumerate(COUNTS.values()) for _ in range(n)]
    assert [frame_of(each)[0] for each in ids] == [
        f"videos/{name}" for name, count in COUNTS.items() for _ in range(count)
    ]
    assert samples.problems == [] and samples.left_out == ""
    total = sum(each.bytes for each in source.record.shards)
    assert total <= samples.estimated_bytes() < 1.6 * total


def test_grey_frames(root, tmp_path):
    pack(root, tmp_path / "a.pack", "channels: 1\n", channels=1)
    assert opened(tmp_path / "a.pack").read(0).shape == (112, 144, 1)


def test_a_stride_is_part_of_what_a_pack_is(root, tmp_path):
    pack(root, tmp_path / "a.pack", "stride: 4\n")
    numbers = [frame_of(each)[1] for each in opened(tmp_path / "a.pack").index.ids]
    assert numbers == [0, 4, 8, 0, 4, 0, 4]
    with pytest.raises(UserError, match=r"other settings \(stride: 4, now 2"):
        pack(root, tmp_path / "a.pack", "stride: 2\n")


def test_what_a_video_lacks_is_logged_and_noted_at_its_last_frame(root, tmp_path, caplog):
    video = cut(root / "videos/b.avi", root / "videos/b.avi", 0.8)
    left = Video(video)
    kept = len(list(left.frames()))
    for number in range(kept - 1, COUNTS["b.avi"]):
        (root / f"labels/b/{number:06}.txt").unlink()
    (root / "labels/a/000003.txt").write_text("0 .5 .5 .1 .1\n0 7 .5 .1 .1\n")
    with caplog.at_level(logging.WARNING):
        samples = pack(root, tmp_path / "a.pack")
    assert [record.message for record in caplog.records] == left.warnings
    line, absent, cut_off = samples.problems
    assert str(line).startswith(f"{root}/labels/a/000003.txt:2: coordinate 7 is outside")
    assert f"1 of {kept} frames have no label file" in str(absent)
    assert str(cut_off) == left.warnings[0] and samples.left_out == "3 problems"


def test_all_faulty_videos_are_told_and_nothing_is_left(root, tmp_path, monkeypatch):
    noisy(root / "videos/a.mp4", root / "videos/a.mp4")
    folder, frames = tmp_path / "a.pack", Video.frames

    def broken(video, stride=1):
        yield from frames(video, stride)
        if video.path.suffix != ".avi":
            raise UserError(f"{video.path}: damaged")

    samples = samples_of(root)
    monkeypatch.setattr(Video, "frames", broken)
    with (
        PackWriter(folder, "train", AS_IS, further=samples.further, shard_bytes=SMALL) as writer,
        pytest.raises(UserError) as caught,
    ):
        samples.pack(writer, 2, lambda _: None)
    assert str(caught.value).splitlines() == [
        f"{root}/videos/a.mp4: damaged",
        f"{root}/videos/c.mkv: damaged",
    ]
    assert not folder.exists()


def test_a_label_past_the_last_decoded_frame_is_refused(root, tmp_path, monkeypatch):
    samples, frames = samples_of(root), Video.frames

    def shorter(video, stride=1):
        yield from list(frames(video, stride))[:-1]
        video.count -= video.path.suffix == ".mkv"

    monkeypatch.setattr(Video, "frames", shorter)
    with (
        PackWriter(tmp_path / "a.pack", "train", AS_IS) as writer,
        pytest.raises(UserError, match=r"labels/c/NUMBER.txt: labels frame 7, but .* has 7 frames"),
    ):
        samples.pack(writer, 2, lambda _: None)


def test_a_picture_of_another_size_is_refused(root, tmp_path, monkeypatch):
    samples = samples_of(root)
    monkeypatch.setattr(packer_module, "Video", lambda path: _Changing(path))
    with (
        PackWriter(tmp_path / "a.pack", "train", AS_IS) as writer,
        pytest.raises(UserError, match="frame 2 has 144x56 pixels, and the first one 144x112"),
    ):
        samples.pack(writer, 2, lambda _: None)


class _Changing(Video):
    """A video whose pictures are half as high from frame 2 on."""

    def frames(self, stride=1):
        for frame in super().frames(stride):
            height = 112 if frame.number < 2 else 56
            yield type(frame)(frame.number, frame.image[:height], frame.time)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_killed_call_is_gone_on_with_and_the_files_are_the_same(root, tmp_path, share):
    whole, folder = tmp_path / "whole.pack", tmp_path / "a.pack"
    pack(root, whole)
    steps = steps_of(lambda: pack(root, folder), folder)
    shutil.rmtree(folder)
    assert killed_at(int(steps * share), lambda: pack(root, folder), folder)
    assert list(folder.glob("unfinished/*/shard.json"))
    seen = []
    pack(root, folder, seen=seen.append)
    assert hashes(folder) == hashes(whole)
    assert sum(seen) == sum(COUNTS.values())


@pytest.mark.slow
def test_videos_before_the_last_finished_frame_are_not_decoded_again(root, tmp_path, monkeypatch):
    folder, samples = tmp_path / "a.pack", samples_of(root)
    read, frames = [], Video.frames

    def watched(video, stride=1):
        read.append(video.path.name)
        return frames(video, stride)

    class Enough(Exception):
        pass

    def stop_behind(count):
        left = [count]

        def seen(number):
            left[0] -= number
            if left[0] <= 0:
                raise Enough

        return seen

    def go_on(seen):
        options = {"further": samples.further, "shard_bytes": SMALL}
        with PackWriter(folder, "train", AS_IS, **options) as writer:
            samples.pack(writer, 1, seen)

    with pytest.raises(Enough):
        go_on(stop_behind(20))
    monkeypatch.setattr(Video, "frames", watched)
    go_on(lambda _: None)
    assert read == ["c.mkv"] or read == ["b.avi", "c.mkv"]


def test_settings_name_what_decides(root):
    frames = FrameSet.of(read_spec(samples_of(root) and root / "set.yaml"), "train")
    assert frames_settings(frames) == {"stride": 1, "videos_and_labels": frames.digest}
