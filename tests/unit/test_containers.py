"""Ends of files that are missing, by the sizes that containers state."""

from __future__ import annotations

import pytest

from tests.videos import cut, write_by_opencv
from yolods.data.video.containers import broken_off, lacks_index


def box(kind: bytes, length: int, *, wide: bool = False) -> bytes:
    if wide:
        return b"\0\0\0\1" + kind + length.to_bytes(8, "big") + bytes(length - 16)
    return length.to_bytes(4, "big") + kind + bytes(length - 8)


@pytest.mark.parametrize(
    ("name", "fourcc"),
    [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.webm", "VP80")],
)
def test_a_written_file_is_whole_and_its_beginning_is_not(tmp_path, name, fourcc):
    path = write_by_opencv(tmp_path / name, fourcc, 12)
    assert not broken_off(path)
    assert broken_off(cut(path, tmp_path / f"cut{path.suffix}", 0.9))


def test_an_mp4_needs_its_index(tmp_path):
    path = tmp_path / "a.mp4"
    for data, whole, indexed in (
        (box(b"ftyp", 16) + box(b"mdat", 90) + box(b"moov", 20), True, True),
        (box(b"ftyp", 16) + box(b"mdat", 90, wide=True) + box(b"moov", 20), True, True),
        (box(b"ftyp", 16) + box(b"moov", 20) + b"\0\0\0\0mdat" + bytes(50), True, True),
        (box(b"ftyp", 16) + box(b"moov", 20) + box(b"mdat", 90)[:-1], False, True),
        (box(b"ftyp", 16) + box(b"mdat", 90)[:-1], False, False),
        (b"text" * 20, True, True),
        (b"", True, True),
    ):
        path.write_bytes(data)
        assert (broken_off(path), lacks_index(path)) == (not whole, not indexed)


def test_a_transport_stream_ends_with_a_packet(tmp_path):
    path, packet = tmp_path / "a.ts", b"G" + bytes(187)
    path.write_bytes(packet * 3)
    assert not broken_off(path)
    path.write_bytes(packet * 3 + packet[:40])
    assert broken_off(path)


def test_an_avi_without_a_size_was_not_completed(tmp_path):
    path = tmp_path / "a.avi"
    path.write_bytes(b"RIFF\0\0\0\0AVI " + bytes(100))
    assert broken_off(path)


def test_an_mkv_may_leave_its_size_open(tmp_path):
    path = tmp_path / "a.mkv"
    path.write_bytes(b"\x1a\x45\xdf\xa3\x82ab\x18\x53\x80\x67\x01" + b"\xff" * 7 + bytes(50))
    assert not broken_off(path)
