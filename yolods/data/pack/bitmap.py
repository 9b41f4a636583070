"""Uncompressed images as BMP files with the top row first, whose pixels are read as they lie.

8 bits grey with a palette, or 24 bits BGR; every image tool opens both.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

FILE_HEADER, INFO_HEADER = struct.Struct("<2sIHHI"), struct.Struct("<IiiHHIIiiII")
HEADERS = FILE_HEADER.size + INFO_HEADER.size
PER_METRE = 2835
"""Pixels per metre: 72 per inch, as most tools write."""
GREYS = np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(256, 4) * np.array(
    [1, 1, 1, 0], np.uint8
)
"""The palette of grey images: blue, green, red and 0 for each value."""


def bitmap_size(height: int, width: int, channels: int) -> int:
    """Bytes of an image's file."""
    return _start(channels) + height * _row_bytes(width, channels)


def to_bitmap(image: np.ndarray) -> bytes:
    """The file of an image: (h, w, 1) grey or (h, w, 3) BGR, uint8.

    Raises:
        ValueError: another number of channels.
    """
    height, width, channels = image.shape
    if channels not in (1, 3):
        raise ValueError(f"an image of {channels} channels is no bitmap")
    rows = np.zeros((height, _row_bytes(width, channels)), np.uint8)
    rows[:, : width * channels] = image.reshape(height, -1)
    palette = GREYS.tobytes() if channels == 1 else b""
    return _headers(height, width, channels) + palette + rows.tobytes()


def bitmap_pixels(data: np.ndarray) -> np.ndarray | None:
    """The pixels of a file that `to_bitmap` made, without a copy if its rows are not padded.

    Args:
        data: (bytes,) uint8, the file.

    Returns:
        (h, w, channels) uint8; None for any other file.
    """
    if len(data) < HEADERS:
        return None
    _, width, height, _, bits, *_ = INFO_HEADER.unpack_from(data, FILE_HEADER.size)
    height, channels = -height, bits // 8
    if channels not in (1, 3) or width <= 0 or height <= 0:
        return None
    if len(data) != bitmap_size(height, width, channels):
        return None
    start, used = _start(channels), width * channels
    if data[:HEADERS].tobytes() != _headers(height, width, channels):
        return None
    if channels == 1 and not np.array_equal(data[HEADERS:start], GREYS.ravel()):
        return None
    rows = data[start:].reshape(height, -1)
    return np.ascontiguousarray(rows[:, :used]).reshape(height, width, channels)


@lru_cache(maxsize=1024)  # the images of a set have few shapes
def _headers(height: int, width: int, channels: int) -> bytes:
    start, colours = _start(channels), len(GREYS) if channels == 1 else 0
    pixels = height * _row_bytes(width, channels)
    file = FILE_HEADER.pack(b"BM", start + pixels, 0, 0, start)
    # A negative height says that the first row is the top one.
    info = (INFO_HEADER.size, width, -height, 1, 8 * channels, 0, pixels)
    return file + INFO_HEADER.pack(*info, PER_METRE, PER_METRE, colours, 0)


def _start(channels: int) -> int:
    """Where the pixels begin."""
    return HEADERS + (GREYS.size if channels == 1 else 0)


def _row_bytes(width: int, channels: int) -> int:
    """Bytes of a row: a multiple of 4."""
    return -(-width * channels // 4) * 4
