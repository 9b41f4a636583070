"""yolods.data.pack.manifest: a finished pack says what it consists of, and damage is found."""

import json
import subprocess

import pytest

from yolods.data.pack.manifest import (
    PACK_FILE,
    SUMS_FILE,
    PackRecord,
    check_shards,
    check_sums,
    hash_file,
    pack_index,
    pack_size,
    read_record,
    record_line,
)
from yolods.data.pack.shard import ShardRecord
from yolods.errors import UserError


@pytest.fixture
def pack(tmp_path):
    for number in range(2):
        (tmp_path / f"0000{number}.tar").write_bytes(bytes(1000 + number))
    (tmp_path / "index").mkdir()
    (tmp_path / "index/x.npy").write_bytes(b"x")
    shards = tuple(
        ShardRecord(file.name, file.stat().st_size, hash_file(file))
        for file in sorted(tmp_path.glob("*.tar"))
    )
    index = {"index/x.npy": hash_file(tmp_path / "index/x.npy")}
    PackRecord("train", {"imgsz": None}, 3, 7, 1500, 1, shards, index).write(tmp_path)
    return tmp_path


def test_it_is_read_as_it_was_written(pack):
    record = read_record(pack)
    assert (record.split, record.images, record.boxes, record.bytes) == ("train", 3, 7, 2001)
    assert [shard.file for shard in record.shards] == ["00000.tar", "00001.tar"]
    check_shards(pack, record)
    line = "3 images, 7 boxes, 2 KiB in 2 tar files; 1 image equal to an earlier one"
    assert record_line(record) == line


def test_sha256sum_accepts_it(pack):
    words = ["sha256sum", "--strict", "-c", SUMS_FILE]
    done = subprocess.run(words, cwd=pack, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("00000.tar: OK", "00001.tar: OK", "index/x.npy: OK", "pack.json: OK")
    ]
    seen = []
    assert list(check_sums(pack, seen.append)) == []
    assert sum(seen) + (pack / SUMS_FILE).stat().st_size == pack_size(pack)


@pytest.mark.parametrize("name", ["00001.tar", "index/x.npy"])
def test_damage_is_found(pack, name):
    data = (pack / name).read_bytes()
    (pack / name).write_bytes(b"?" + data[1:])
    assert list(check_sums(pack, lambda _: None)) == [name]
    (pack / name).unlink()
    assert list(check_sums(pack, lambda _: None)) == [name]


def test_sums_that_leave_a_file_out_are_no_proof(pack):
    lines = (pack / SUMS_FILE).read_text().splitlines(keepends=True)
    (pack / SUMS_FILE).write_text("".join(lines[1:]))
    assert list(check_sums(pack, lambda _: None)) == ["00000.tar"]
    (pack / SUMS_FILE).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        list(check_sums(pack, lambda _: None))


def test_tar_files_that_are_missing_or_cut_are_named_at_once(pack):
    (pack / "00000.tar").unlink()
    (pack / "00001.tar").write_bytes(b"cut")
    with pytest.raises(UserError) as caught:
        check_shards(pack, read_record(pack))
    first, second = str(caught.value).splitlines()
    assert "00000.tar: No such file" in first
    assert "00001.tar has 3 bytes instead of 1001" in second


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a finished pack: pack.json is missing"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 1, "shards": []}', "is damaged"),
        ('{"format": 2, "shards": []}', "has format 2, and this version of yolods reads format 1"),
    ],
)
def test_other_files_are_refused(pack, content, message):
    (pack / PACK_FILE).unlink()
    if content is not None:
        (pack / PACK_FILE).write_text(content)
    with pytest.raises(UserError, match=message):
        read_record(pack)


def test_a_damaged_index_is_named(pack):
    with pytest.raises(UserError, match="index is damaged"):
        pack_index(pack)
    (pack / "index/index.json").write_text(json.dumps({"images": 1}))
    (pack / "index/x.npy").unlink()
    with pytest.raises(UserError, match="index is damaged"):
        pack_index(pack)
