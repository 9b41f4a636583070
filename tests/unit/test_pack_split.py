"""yolods.data.pack.split: a checked split is packed by any number of processes, and measured."""

import os

import numpy as np
import pytest

from tests.packs import AS_IS, flip, hashes, make_odd_set, pack_of, packed_yaml
from tests.tiny import make_dataset
from yolods.data.pack import split as split_module
from yolods.data.pack.encode import Encoding
from yolods.data.pack.split import SplitSamples
from yolods.data.pack.writer import PackWriter
from yolods.data.scan import scan
from yolods.data.spec import read_spec
from yolods.errors import UserError


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A power cut is not played here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def yaml(tmp_path):
    return make_odd_set(tmp_path / "set", train=10)


def samples(yaml, encoding=AS_IS, split="train", channels=3):
    found = scan(read_spec(yaml), split, cache=yaml.parent.parent / "cache")
    return SplitSamples.of(found, encoding, channels)


def test_processes_change_nothing(yaml, tmp_path, monkeypatch):
    monkeypatch.setattr(split_module, "FEW", 4)
    monkeypatch.setattr(split_module, "IMAGES_AT_ONCE", 2)
    encoding, seen = Encoding(64), []
    for workers in (1, 2):
        folder = tmp_path / f"{workers}.pack"
        with PackWriter(folder, "train", encoding, shard_bytes=9000) as writer:
            samples(yaml, encoding).pack(writer, workers, seen.append)
    assert hashes(tmp_path / "1.pack") == hashes(tmp_path / "2.pack")
    assert sum(seen) == 2 * 15


@pytest.mark.parametrize(
    "encoding",
    [AS_IS, Encoding(64), Encoding(64, uncompressed=True), Encoding(640, uncompressed=True)],
)
def test_the_estimate_is_a_little_more_than_the_pack(tmp_path, encoding):
    yaml = make_dataset(tmp_path / "set", train=40, val=1, size=96)
    pack_of(yaml, tmp_path / "a.pack", encoding=encoding)
    total = sum(f.stat().st_size for f in (tmp_path / "a.pack").rglob("*") if f.is_file())
    assert total <= samples(yaml, encoding).estimated_bytes() < 1.7 * total


@pytest.mark.parametrize("file", ["images/train/003.jpg", "labels/train/003.txt"])
def test_a_file_that_changes_while_it_is_packed_is_named(yaml, tmp_path, file):
    found = samples(yaml)
    (yaml.parent / file).write_bytes((yaml.parent / file).read_bytes() + b"\n")
    with (
        PackWriter(tmp_path / "a.pack", "train", AS_IS) as writer,
        pytest.raises(UserError, match=r"003.jpg, or its label file, was changed"),
    ):
        found.pack(writer, 1, lambda _: None)


def test_a_file_that_vanishes_is_named(yaml, tmp_path):
    found = samples(yaml)
    (yaml.parent / "images/train/003.jpg").unlink()
    with (
        PackWriter(tmp_path / "a.pack", "train", AS_IS) as writer,
        pytest.raises(UserError, match=r"003.jpg: No such file"),
    ):
        found.pack(writer, 1, lambda _: None)


def test_a_pack_is_packed_again_at_another_size(yaml, tmp_path):
    made = packed_yaml(yaml, tmp_path / "out")
    raw = Encoding(64, uncompressed=True)
    pack_of(yaml, tmp_path / "files.pack", encoding=raw)
    pack_of(made, tmp_path / "again.pack", encoding=raw)
    one, other = (np.load(tmp_path / f"{name}.pack/index/crc32.npy") for name in ("files", "again"))
    assert np.array_equal(one, other)
    flip(tmp_path / "out/train.pack/00000.tar", 700)
    with pytest.raises(UserError, match=r"00000.tar: images/train/.*cannot be read"):
        pack_of(made, tmp_path / "third.pack", encoding=raw)
