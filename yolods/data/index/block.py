"""Some images' rows of an index as arrays, which a process that checks images sends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from yolods.data.verify import CheckedPair, Problem


# Wide: one field per column of the index.
@dataclass
class Block:
    """The checks of n images with m boxes and k polygon points."""

    ids: list[str]
    """Identities in the source."""
    shape: np.ndarray
    """(n, 2) int32 height and width in pixels; (0, 0) for a skipped image."""
    boxes: np.ndarray
    """(n,) boxes of each image."""
    box: np.ndarray
    """(m, 5) float32: class, normalised centre x, centre y, width, height."""
    line: np.ndarray
    """(m,) int32 line of the label file, from 1."""
    points: np.ndarray
    """(m,) polygon points of each box; 0: a box without a polygon."""
    point: np.ndarray
    """(k, 2) float32."""
    stat: np.ndarray
    """(n, 4) int64: size in bytes and time in ns of the image, and of its labels; -1: absent."""
    digest: np.ndarray
    """(n, 16) uint8; see `digest_of`."""
    place: np.ndarray
    """(n,) uint64; equal for images that are the same file, see `place_number`."""
    lines_skipped: np.ndarray
    """(n,) int32 skipped label lines."""
    problems: list[tuple[int, Problem]]
    """(image of the block, what was skipped)."""
    further: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns that only this kind of source has, n rows each."""


def block_of(
    items: Sequence[CheckedPair], stats: Sequence[Sequence[int]], places: Sequence[int]
) -> Block:
    """Arrays out of the checks of at least one image.

    Args:
        items: the checks, with their identities.
        stats: the rows of `Block.stat`.
        places: `Block.place`.
    """
    points = [_points(item) for item in items]
    lines = [item.lines or range(1, len(item.rows) + 1) for item in items]
    return Block(
        ids=[item.id for item in items],
        shape=np.array([item.shape or (0, 0) for item in items], np.int32),
        boxes=np.array([len(item.rows) for item in items]),
        box=np.concatenate([item.rows for item in items]),
        line=np.array([line for each in lines for line in each], np.int32),
        points=np.array([len(each) for polygons in points for each in polygons], np.int64),
        point=np.concatenate([np.zeros((0, 2), np.float32), *(p for each in points for p in each)]),
        stat=np.array(stats, np.int64).reshape(-1, 4),
        digest=np.stack(
            [
                np.frombuffer(digest_of(stat[0], item.shape, item.rows), np.uint8)
                for item, stat in zip(items, stats, strict=True)
            ]
        ),
        place=np.array(places, np.uint64),
        lines_skipped=np.array([item.lines_skipped for item in items], np.int32),
        problems=[(place, each) for place, item in enumerate(items) for each in item.problems],
    )


def _points(item: CheckedPair) -> list[np.ndarray]:
    return item.segments or [np.zeros((0, 2), np.float32)] * len(item.rows)


def digest_of(size: int, shape: Sequence[int] | None, rows: np.ndarray) -> bytes:
    """16 bytes that identify an image by its size in bytes, shape and boxes, and not by its name.

    Args:
        size: bytes of the image file.
        shape: (height, width), or None for a skipped image.
        rows: (n, 5) float32: class, centre x, centre y, width, height.
    """
    height, width = (0, 0) if shape is None else shape
    boxes = rows[:, :1].tobytes() + rows[:, 1:].tobytes()
    return blake2b(f"{size} {(int(height), int(width))} ".encode() + boxes, digest_size=16).digest()


def place_number(*parts: str) -> int:
    """64 bits of a hash of where an image is, in the spelling that all of its names lead to."""
    coded = b"\0".join(map(os.fsencode, parts))
    return int.from_bytes(blake2b(coded, digest_size=8).digest(), "little")


def stat_of(file: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file; (-1, -1) if it is absent."""
    return state_of(file)[:2]


def state_of(file: str) -> tuple[int, int, int]:
    """As `stat_of`, and the time in ns when its content, name or rights changed last; or -1.

    Programs can set the modification time, and not this one. A copy has one of its own.
    """
    try:
        found = os.stat(file)
    except OSError:
        return -1, -1, -1
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
