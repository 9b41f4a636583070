"""yolods.data.pack.packed: samples out of a pack are those of the files, and damage is named."""

import os
import pickle
import shutil
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg

from tests.packs import AS_IS, flip, make_odd_set, packed_yaml
from tests.tiny import make_dataset
from yolods.data.dataset import DetectionSet
from yolods.data.index.fingerprint import samples_of
from yolods.data.pack import packed as packed_module
from yolods.data.pack.encode import Encoding
from yolods.data.scan import scan
from yolods.data.source import Unreadable
from yolods.data.spec import as_ultralytics, read_spec
from yolods.errors import UserError

SIDE = 64
RAW = Encoding(SIDE, uncompressed=True)


def opened(yaml, split="train"):
    return scan(read_spec(yaml), split, cache=yaml.parent.parent / "cache")


def dataset(yaml, split="train", **hyp):
    settings = get_cfg(overrides={"epochs": 20, **hyp})
    return DetectionSet(
        opened(yaml, split),
        as_ultralytics(read_spec(yaml)),
        settings,
        imgsz=SIDE,
        augment=split == "train",
        cache_bytes=0,
    )


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[key], other[key]) for key in ("img", "cls", "bboxes")) and all(
        one[key] == other[key] for key in ("im_file", "ori_shape", "sources", "replaced")
    )


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A power cut is not played here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def yaml(tmp_path):
    return make_odd_set(tmp_path / "set")


@pytest.mark.parametrize("encoding", [AS_IS, RAW], ids=["as it is", "raw"])
def test_samples_are_those_of_the_files(yaml, tmp_path, encoding):
    made = packed_yaml(yaml, tmp_path / "out", encoding, shard_bytes=50_000)
    hyp = {"mosaic": 0.7, "mixup": 0.3, "degrees": 5.0}
    before, after = dataset(yaml, **hyp), dataset(made, **hyp)
    assert len(before) == len(after) == 11
    assert all(same(before[0, index], after[0, index]) for index in range(11))
    before, after = dataset(yaml, "val"), dataset(made, "val")
    assert all(same(before[index], after[index]) for index in range(4))


@pytest.mark.parametrize("chunk", [1000, 4096, 1 << 20])
def test_an_image_is_read_in_chunks(yaml, tmp_path, monkeypatch, chunk):
    made = packed_yaml(yaml, tmp_path / "out", RAW)
    before, after = dataset(yaml, "val"), dataset(made, "val")
    monkeypatch.setattr(packed_module, "READ_CHUNK", chunk)
    assert all(same(before[index], after[index]) for index in range(4))
    source = opened(made).source
    sizes = source.index.columns["size"]
    assert int(sizes.max()) > 4096
    source._open = lambda _: _Short(source)
    with pytest.raises(Unreadable, match="wrong checksum"):
        source.read(0)


class _Short:
    """A tar file that ends in the middle of the first image."""

    def __init__(self, source) -> None:
        whole = Path(source._tars[0]).read_bytes()
        end = int(source.index.columns["offset"][0] + source.index.columns["size"][0] // 2)
        self.descriptor = os.memfd_create("short")
        os.write(self.descriptor, whole[:end])

    def __del__(self) -> None:
        os.close(self.descriptor)


def test_a_jpeg_at_training_size_is_close(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out", Encoding(SIDE))
    before, after = dataset(yaml, "val"), dataset(made, "val")
    for index in range(4):
        one, other = before[index], after[index]
        assert one["ori_shape"] == other["ori_shape"]
        assert torch.equal(one["bboxes"], other["bboxes"])
        assert (one["img"].int() - other["img"].int()).abs().float().mean() < 4


@pytest.mark.parametrize("encoding", [AS_IS, RAW], ids=["as it is", "raw"])
def test_its_fingerprint_is_that_of_the_files(yaml, tmp_path, encoding):
    made = packed_yaml(yaml, tmp_path / "out", encoding)
    assert samples_of(opened(made).labels) == samples_of(opened(yaml).labels)


def test_what_is_derived_is_kept_in_the_cache_and_not_taken_for_another_pack(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    first = samples_of(opened(made).labels)
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert list((tmp_path / "cache").rglob("samples-*.json"))
    # As many images, but another one of them.
    (yaml.parent / "labels/train/003.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    packed_yaml(yaml, tmp_path / "out", overwrite=True)
    assert samples_of(opened(made).labels).change_from(first) == "content"


def test_it_may_be_moved(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out")
    before = opened(made)
    shutil.rmtree(yaml.parent)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    after = opened(tmp_path / "elsewhere/packed.yaml")
    assert [*after.index.ids] == [*before.index.ids]
    assert after.source.read(0).shape == (96, 96, 3)
    place = after.source.place("images/train/000.jpg")
    assert place == f"{tmp_path}/elsewhere/train.pack: images/train/000.jpg"


@pytest.mark.parametrize(
    "encoding", [AS_IS, Encoding(16, uncompressed=True)], ids=["as it is", "raw"]
)
def test_a_byte_that_changed_in_each_of_100_samples_is_named(tmp_path, encoding):
    yaml = make_dataset(tmp_path / "set", train=100, val=1, size=24)
    made = packed_yaml(yaml, tmp_path / "out", encoding, shard_bytes=60_000)
    source = opened(made).source
    columns, folder = source.index.columns, tmp_path / "out/train.pack"
    rng = np.random.default_rng(0)
    assert len(np.unique(columns["shard"])) > 1
    for row in range(100):
        place = int(columns["offset"][row] + rng.integers(columns["size"][row]))
        flip(folder / f"0000{columns['shard'][row]}.tar", place)
    named = []
    for row in range(100):
        with pytest.raises(Unreadable) as caught:
            source.read(row)
        named.append(str(caught.value))
    assert named == [
        f"{folder}/0000{columns['shard'][row]}.tar: images/train/{row:03}.jpg: wrong checksum"
        for row in range(100)
    ]


def test_a_damaged_sample_is_replaced_as_a_damaged_file_is(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out")
    source = opened(made).source
    flip(tmp_path / "out/train.pack/00000.tar", int(source.index.columns["offset"][2]) + 100)
    (yaml.parent / "images/train/002.jpg").write_bytes(b"no image")
    damaged, broken = dataset(made, mosaic=0.0), dataset(yaml, mosaic=0.0)
    # The check of the files leaves theirs out, so that places behind it differ.
    sample = damaged[0, 2]
    assert sample["replaced"] == ["images/train/002.jpg"]
    assert sample["im_file"] == "images/train/003.jpg"
    assert len(broken) == len(damaged) - 1


def test_what_is_missing_or_cut_is_said_at_opening(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out", shard_bytes=12_000)
    folder = tmp_path / "out/train.pack"
    (folder / "00000.tar").unlink()
    os.truncate(folder / "00002.tar", 100)
    with pytest.raises(UserError) as caught:
        opened(made)
    first, second = str(caught.value).splitlines()
    assert "00000.tar: No such file" in first and "00002.tar has 100 bytes instead of" in second


def test_a_tar_file_that_goes_or_is_cut_later_is_named(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out", shard_bytes=12_000)
    source, folder = opened(made).source, tmp_path / "out/train.pack"
    os.truncate(folder / "00000.tar", 700)
    (folder / "00001.tar").unlink()
    shards = source.index.columns["shard"].tolist()
    for shard, message in ((0, "wrong checksum"), (1, "No such file")):
        with pytest.raises(Unreadable, match=f"0000{shard}.tar: images/train/.*{message}"):
            source.read(shards.index(shard))


def test_an_unfinished_pack_and_other_channels_are_refused(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out")
    (tmp_path / "out/both.yaml").write_text(made.read_text().replace("train.pack", "[a, b]", 1))
    grey = tmp_path / "out/grey.yaml"
    grey.write_text(made.read_text() + "channels: 1\n")
    with pytest.raises(UserError, match=r"channels: 1, but .* was packed with 3"):
        opened(grey)
    (tmp_path / "out/train.pack/pack.json").unlink()
    with pytest.raises(UserError, match="is not a finished pack"):
        opened(made)


def test_a_split_takes_one_pack(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out")
    made.write_text(made.read_text().replace("train: train.pack", "train: [train.pack, val.pack]"))
    with pytest.raises(UserError, match="a split takes one pack"):
        opened(made)


def test_an_index_of_other_images_is_refused(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/train.pack/index")
    shutil.copytree(tmp_path / "out/val.pack/index", tmp_path / "out/train.pack/index")
    with pytest.raises(UserError, match=r"its index has 4 images and pack.json 11"):
        opened(made)


def test_threads_forks_and_copies_read_it(yaml, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_module, "OPEN_FILES", 2)  # fewer than there are tar files
    source = opened(packed_yaml(yaml, tmp_path / "out", shard_bytes=12_000)).source
    expected = [source.read(row) for row in range(11)]
    with ThreadPool(4) as pool:
        found = pool.map(source.read, [*range(11)] * 20)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected * 20, strict=True))
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(10), expected[10])
    child = os.fork()
    if not child:
        os._exit(0 if all(np.array_equal(source.read(r), expected[r]) for r in range(11)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_files_that_are_no_longer_read_are_closed(yaml, tmp_path):
    source = opened(packed_yaml(yaml, tmp_path / "out", shard_bytes=12_000)).source
    before = len(os.listdir("/proc/self/fd"))
    for row in range(11):
        source.read(row)
    assert len(os.listdir("/proc/self/fd")) > before
    del source
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_pack_of_pixels_is_told_from_others(yaml, tmp_path):
    raw = packed_yaml(yaml, tmp_path / "out", RAW)
    jpeg = packed_yaml(yaml, tmp_path / "other", Encoding(SIDE))
    found = [packed_module.is_raw_pack(opened(each).source) for each in (yaml, jpeg, raw)]
    assert found == [False, False, True]
