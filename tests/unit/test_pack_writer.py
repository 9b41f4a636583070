"""yolods.data.pack.writer: a pack is the same however often its making was interrupted."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from tests.packs import AS_IS, hashes, killed_at, make_odd_set, pack_of, steps_of, unpack
from yolods.data.index.block import digest_of
from yolods.data.index.labels import Labels
from yolods.data.pack.encode import Encoding
from yolods.data.pack.manifest import pack_index
from yolods.data.pack.packed import PackedImages
from yolods.data.pack.sample import Sample, store
from yolods.data.pack.writer import PackWriter
from yolods.data.scan import scan
from yolods.data.spec import read_spec
from yolods.data.verify import CheckedPair
from yolods.errors import UserError

SMALL = 12_000
"""Bytes of a tar file that holds about two images of the set."""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A power cut is not played here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def yaml(tmp_path):
    return make_odd_set(tmp_path / "set")


def files(yaml, split="train"):
    return scan(read_spec(yaml), split, cache=yaml.parent.parent / "cache")


def begin(yaml, folder):
    """Pack, and be killed halfway."""
    other = folder.with_name("other.pack")
    steps = steps_of(lambda: pack_of(yaml, other, shard_bytes=SMALL), other)
    assert killed_at(steps // 2, lambda: pack_of(yaml, folder, shard_bytes=SMALL), folder)
    assert list(folder.glob("unfinished/*/shard.json"))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", [AS_IS, Encoding(64, uncompressed=True)])
def test_a_killed_call_is_gone_on_with_and_the_files_are_the_same(yaml, tmp_path, encoding):
    options = {"encoding": encoding, "shard_bytes": SMALL}
    record = pack_of(yaml, tmp_path / "whole.pack", **options)
    assert len(record.shards) > 2
    whole = hashes(tmp_path / "whole.pack")
    folder = tmp_path / "killed.pack"
    steps = steps_of(lambda: pack_of(yaml, folder, **options), folder)
    assert hashes(folder) == whole
    for part in (0.02, 0.4, 0.7, 0.98):
        shutil.rmtree(folder)
        assert killed_at(round(part * steps), lambda: pack_of(yaml, folder, **options), folder)
        pack_of(yaml, folder, **options)
        assert hashes(folder) == whole, part


@pytest.mark.slow
def test_a_finished_tar_file_is_not_written_again(yaml, tmp_path):
    folder = tmp_path / "a.pack"
    begin(yaml, folder)
    before = {file: file.stat().st_ino for file in folder.glob("*.tar")}
    pack_of(yaml, folder, shard_bytes=SMALL)
    assert {file: file.stat().st_ino for file in before} == before


def test_a_finished_pack_is_left_as_it_is(yaml, tmp_path):
    first = pack_of(yaml, tmp_path / "a.pack")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "a.pack").rglob("*")}
    (tmp_path / "a.pack/unfinished").mkdir()  # a kill just before its removal leaves this
    assert pack_of(yaml, tmp_path / "a.pack") == first
    assert {file: file.stat().st_mtime_ns for file in before if file.is_file()} == {
        file: time for file, time in before.items() if file.is_file()
    }
    assert not (tmp_path / "a.pack/unfinished").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "finished"),
    [
        *(("label", False), ("image", True), ("fewer", False), ("fewer", True)),
        *(("more", False), ("more", True), ("name", True)),
    ],
)
def test_changed_data_are_refused(yaml, tmp_path, change, finished):
    folder, images = tmp_path / "a.pack", yaml.parent / "images/train"
    if finished:
        pack_of(yaml, folder, shard_bytes=SMALL)
    else:
        begin(yaml, folder)
    if change == "label":
        (yaml.parent / "labels/train/000.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    elif change == "image":
        cv2.imwrite(str(images / "000.jpg"), np.zeros((96, 96, 3), np.uint8))
    elif change == "fewer":
        (images / "000.jpg").unlink()
    elif change == "more":
        shutil.copy(images / "000.jpg", images / "0000.jpg")
    else:
        (images / "000.jpg").rename(images / "0000.jpg")
    with pytest.raises(UserError, match="--overwrite packs it again"):
        pack_of(yaml, folder, shard_bytes=SMALL)
    pack_of(yaml, folder, shard_bytes=SMALL, overwrite=True)
    pack_of(yaml, tmp_path / "fresh.pack", shard_bytes=SMALL)
    assert hashes(folder) == hashes(tmp_path / "fresh.pack")


def test_other_settings_are_refused(yaml, tmp_path):
    pack_of(yaml, tmp_path / "a.pack")
    with pytest.raises(UserError, match=r"packed already, with other settings \(imgsz: None, now"):
        pack_of(yaml, tmp_path / "a.pack", encoding=Encoding(64))
    with pytest.raises(UserError, match="shard_bytes"):
        pack_of(yaml, tmp_path / "a.pack", shard_bytes=SMALL)
    with pytest.raises(UserError, match="stride: None, now 2"):
        pack_of(yaml, tmp_path / "a.pack", further={"stride": 2})


def test_unpacked_it_is_the_same_set(yaml, tmp_path):
    (yaml.parent / "labels/train/000.txt").write_bytes(b"1 .5 .5 .25 .25\r\n\n9 bad line\n")
    pack_of(yaml, tmp_path / "a.pack", shard_bytes=SMALL)
    unpack(tmp_path / "a.pack", tmp_path / "out")
    for kind in ("images", "labels"):
        assert hashes(tmp_path / "out" / kind / "train") == hashes(yaml.parent / kind / "train")


@pytest.mark.parametrize("encoding", [Encoding(64), Encoding(64, uncompressed=True)])
def test_unpacked_at_training_size_it_has_the_same_boxes(yaml, tmp_path, encoding):
    pack_of(yaml, tmp_path / "out/train.pack", encoding=encoding)
    unpack(tmp_path / "out/train.pack", tmp_path / "out")
    (tmp_path / "out/x.yaml").write_text("train: images/train\nval: images/train\nnames: [a, b]\n")
    before, after = files(yaml), files(tmp_path / "out/x.yaml")
    assert after.problems == () and len(after.labels) == len(before.labels)
    assert np.array_equal(after.labels.boxes(), before.labels.boxes())
    assert after.labels.shapes.max() == 64


def test_rows_of_the_index_are_those_of_the_files(yaml, tmp_path):
    (yaml.parent / "labels/train/001.txt").write_text("0 .5 .5 .25 .25\nbad\n")
    (yaml.parent / "images/train/bad.jpg").write_bytes(b"no image")
    record = pack_of(yaml, tmp_path / "a.pack", shard_bytes=SMALL)
    before, index = files(yaml), pack_index(tmp_path / "a.pack")
    after = Labels(index, index.kept_rows())
    assert record.images == len(after) == len(before.labels) == before.index.counts.images - 1
    assert [*index.ids] == [before.labels[place]["im_file"] for place in range(len(after))]
    assert np.array_equal(before.labels.boxes(), after.boxes())
    assert np.array_equal(before.labels.shapes, after.shapes)
    assert list(before.labels.digests()) == list(after.digests())
    kept = before.index.kept_rows()
    for name in ("stat", "lines_skipped"):
        assert np.array_equal(before.index.columns[name][kept], index.columns[name])
    (problem,) = (problem for _, problem in index.problems())
    assert str(problem).startswith("labels/train/001.txt:2: 'bad' is not a number")


def test_polygons_are_kept(yaml, tmp_path):
    for file in (yaml.parent / "labels/train").iterdir():
        file.write_text("0 .1 .1 .9 .2 .5 .8 .3 .4\n1 .2 .2 .6 .2 .6 .7\n")
    pack_of(yaml, tmp_path / "a.pack")
    index = pack_index(tmp_path / "a.pack")
    before, after = files(yaml).labels, Labels(index, index.kept_rows())
    assert after.has_polygons
    for place in range(len(after)):
        pairs = zip(before[place]["segments"], after[place]["segments"], strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)


def test_an_image_that_is_named_twice_is_packed_twice(yaml, tmp_path):
    listed = yaml.parent / "list.txt"
    listed.write_text("./images/train/000.jpg\n./images/train/001.jpg\n./images/train/000.jpg\n")
    yaml.write_text("train: list.txt\nval: images/val\nnames: [a, b]\n")
    record = pack_of(yaml, tmp_path / "a.pack")
    assert (record.images, record.duplicates) == (3, 1)
    unpack(tmp_path / "a.pack", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/images/train").iterdir()) == [
        *("000.jpg", "000~2.jpg", "001.jpg")
    ]
    source = PackedImages(tmp_path / "a.pack", pack_index(tmp_path / "a.pack"), record)
    assert np.array_equal(source.read(0), source.read(1))
    assert not np.array_equal(source.read(0), source.read(2))


def write_samples(writer, samples):
    """Pack samples that are made again when a later call goes on."""
    for sample in samples:
        check = sample.check
        if not writer.has(
            check.id, sample.stat, digest_of(sample.stat[0], check.shape, check.rows)
        ):
            writer.add(store(sample, writer.encoding, writer.channels))
    return writer.finish()


def frames(count, box=0.5):
    for number in range(count):
        pixels = np.full((40, 60, 3), 10 + number, np.uint8)
        rows = np.array([[0, box, 0.5, 0.25, 0.25]], np.float32)[: number % 2]
        check = CheckedPair("clip.mp4", (40, 60), rows, id=f"clip.mp4/{number:06}")
        yield Sample(check, pixels, (7200, 0, -1, -1), group=number // 3)


def test_samples_of_any_source_are_packed(tmp_path):
    with PackWriter(tmp_path / "a.pack", "train", AS_IS) as writer:
        record = write_samples(writer, frames(5))
    index = pack_index(tmp_path / "a.pack")
    source = PackedImages(tmp_path / "a.pack", index, record)
    assert (record.images, record.boxes) == (5, 2)
    assert index.columns["group"].tolist() == [0, 0, 0, 1, 1]
    assert [round(source.read(row).mean()) for row in range(5)] == [10, 11, 12, 13, 14]
    unpack(tmp_path / "a.pack", tmp_path)
    assert sorted(path.name for path in (tmp_path / "labels/train/clip.mp4").iterdir()) == [
        *("000001.txt", "000003.txt")
    ]


@pytest.mark.slow
def test_samples_are_gone_on_with_too(tmp_path):
    def pack(folder, count=30, box=0.5):
        with PackWriter(folder, "train", AS_IS, shard_bytes=10_000) as writer:
            return write_samples(writer, frames(count, box))

    whole, folder = tmp_path / "whole.pack", tmp_path / "a.pack"
    pack(whole)
    steps = steps_of(lambda: pack(folder), folder)
    shutil.rmtree(folder)
    killed_at(steps // 2, lambda: pack(folder), folder)
    assert list(folder.glob("*.tar"))
    with pytest.raises(UserError, match=r"clip.mp4/000001: the data has changed"):
        pack(folder, box=0.25)
    pack(folder)
    assert hashes(folder) == hashes(whole)
    with pytest.raises(UserError, match="a sample that is gone: the data has changed"):
        pack(folder, count=29)
    with pytest.raises(UserError, match=r"clip.mp4/000030: the data has changed"):
        pack(folder, count=31)


def test_a_caller_that_knows_its_samples_goes_on_behind_the_last_finished(tmp_path):
    folder, samples = tmp_path / "a.pack", list(frames(20))
    with PackWriter(folder, "train", AS_IS, shard_bytes=10_000) as writer:
        assert writer.last_finished() is None
        for sample in samples:
            writer.add(store(sample, AS_IS, 3))
    with PackWriter(folder, "train", AS_IS, shard_bytes=10_000) as writer:
        last = int(writer.last_finished().rpartition("/")[2])
        assert 0 < last < 19
        for sample in samples[last + 1 :]:
            writer.add(store(sample, AS_IS, 3))
        assert writer.finish().images == 20
    with PackWriter(folder, "train", AS_IS, shard_bytes=10_000) as writer:
        assert writer.complete and writer.last_finished() == "clip.mp4/000019"


def test_a_pack_that_can_never_be_finished_is_removed(tmp_path):
    with PackWriter(tmp_path / "a.pack", "train", AS_IS, shard_bytes=10_000) as writer:
        for sample in frames(20):
            writer.add(store(sample, AS_IS, 3))
        writer.discard()
    assert not (tmp_path / "a.pack").exists()


def test_nothing_to_pack_is_said(tmp_path):
    with (
        PackWriter(tmp_path / "a.pack", "train", AS_IS) as writer,
        pytest.raises(UserError, match="no image to pack"),
    ):
        write_samples(writer, [])


def test_an_exception_keeps_finished_tar_files_and_nothing_else(tmp_path):
    def broken():
        yield from frames(20)
        raise OSError(28, "No space left on device")

    folder = tmp_path / "a.pack"
    with pytest.raises(OSError), PackWriter(folder, "train", AS_IS, shard_bytes=10_000) as writer:
        write_samples(writer, broken())
    assert list(folder.glob(".*.part")) == []
    shards = sorted(folder.glob("*.tar"))
    noted = [json.loads(f.read_text()) for f in sorted(folder.glob("unfinished/*/shard.json"))]
    assert [each["file"] for each in noted] == [file.name for file in shards] != []
