"""Files that are whole once they are said to be."""

from __future__ import annotations

import zlib

import pytest

from yolods.checkpoint.checked_files import FileRecord, damage, write_file, write_text


def test_the_record_is_of_what_was_written(tmp_path):
    file = tmp_path / "a"

    def write(target):
        target.write(b"one")
        target.write(memoryview(b"two"))

    record = write_file(file, write)
    assert record == FileRecord(6, f"{zlib.crc32(b'onetwo'):08x}")
    assert file.read_bytes() == b"onetwo" and damage(file, record) is None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"12345", "cut short, 5 of 6 bytes"),
        (b"1234567", "too long, 7 of 6 bytes"),
        (b"12345\x37", "damaged, its checksum is "),
        (None, "missing"),
    ],
)
def test_what_has_become_of_a_file_is_told(tmp_path, data, told):
    file = tmp_path / "a"
    record = write_text(file, "123456")
    file.unlink() if data is None else file.write_bytes(data)
    assert damage(file, record).startswith(told)


def test_the_disks_error_is_told_and_not_what_torch_makes_of_it(tmp_path, monkeypatch):
    from yolods.checkpoint import checked_files

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checked_files, "write_all", full)

    def like_torch(target):
        try:
            target.write(b"x")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None

    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", like_torch)


def test_a_mistake_that_is_not_the_disks_is_told_as_it_is(tmp_path):
    def wrong(target):
        raise RuntimeError("not the disk")

    with pytest.raises(RuntimeError, match="not the disk"):
        write_file(tmp_path / "a", wrong)
