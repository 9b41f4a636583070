"""Sees from the sizes that a container states whether the end of its file is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MOST_BOXES = 10_000
TS_PACKET = 188
"""Bytes of a packet of an MPEG transport stream, which begins with `TS_SYNC`."""
TS_SYNC = 0x47


def broken_off(path: Path) -> bool:
    """Whether the file is shorter than its container says.

    Known containers are mp4, mov, avi, mkv, webm and mpegts; False for others. A transport stream
    that ends between two of its packets, and an mkv whose writing was never completed, do not show
    it.
    """
    with path.open("rb") as stream:
        head, size = stream.read(TS_PACKET + 1), path.stat().st_size
        if head[4:8] == b"ftyp":
            return any(start + length > size for _, start, length in _boxes(stream, size))
        if head[:4] == b"RIFF":
            return any(start + length > size for start, length in _riffs(stream, size))
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _segment_end(head) > size
        if head[0::TS_PACKET] == bytes((TS_SYNC, TS_SYNC)):
            return size % TS_PACKET != 0
    return False


def lacks_index(path: Path) -> bool:
    """Whether this is an mp4 or mov whose index, the box `moov`, is missing."""
    with path.open("rb") as stream:
        kinds = [kind for kind, _, _ in _boxes(stream, path.stat().st_size)]
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds


def _boxes(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The outermost boxes of an mp4: kind, first byte and length."""
    start = 0
    for _ in range(MOST_BOXES):
        stream.seek(start)
        head = stream.read(16)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        length = length or size - start  # 0: up to the end
        yield head[4:8], start, length
        start += max(length, 8)


def _riffs(stream: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """The RIFF chunks of an avi, one per gigabyte: first byte and length."""
    start = 0
    while start < size:
        stream.seek(start)
        head = stream.read(8)
        if head[:4] != b"RIFF":
            return
        # The length is written last: without it, the writer did not come to the end.
        stated = int.from_bytes(head[4:], "little")
        yield start, 8 + stated + stated % 2 if stated else size - start + 1
        start += 8 + stated + stated % 2


def _segment_end(head: bytes) -> int:
    """Where the segment of an mkv ends by its first bytes; 0: not stated there."""
    length, start = _ebml_size(head, 4)
    start += length
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return 0
    length, start = _ebml_size(head, start + 4)
    return start + length if length else 0


def _ebml_size(head: bytes, place: int) -> tuple[int, int]:
    """A size of variable width, 0 if it is unknown, and the place after it."""
    width = 9 - head[place].bit_length() if place < len(head) and head[place] else 1
    value = int.from_bytes(head[place : place + width], "big") & ((1 << 7 * width) - 1)
    unknown = value == (1 << 7 * width) - 1
    return 0 if unknown else value, place + width
