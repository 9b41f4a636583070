"""Decodes JPEGs faster than cv2 where simplejpeg is installed, to the same pixels."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import cv2
import numpy as np
from PIL import Image

_ORIENTATION = 0x0112
"""EXIF's tag."""
_START, _SCAN, _APP1 = b"\xff\xd8", b"\xda", b"\xe1"
"""The first bytes of a JPEG, the marker before its pixels, and that of a segment with EXIF."""


def decode_upright(data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG in colour that lies upright: (h, w, 3) uint8 BGR, as cv2 decodes them.

    None where cv2 has to decide: for other files, damaged ones included, and without simplejpeg.
    """
    library = simplejpeg()
    if library is None or not data.startswith(_START) or not _is_upright(data):
        return None
    try:
        if library.decode_jpeg_header(data)[2] != "YCbCr":
            return None
        return library.decode_jpeg(data, colorspace="BGR")
    except ValueError:
        return None


@cache
def simplejpeg() -> ModuleType | None:
    """simplejpeg, if it is installed and gives the same pixels as cv2.

    Both have a libjpeg-turbo of their own, which may have been built with other arithmetic.
    """
    try:
        library = importlib.import_module("simplejpeg")
    except ImportError:
        return None
    rows, columns = np.mgrid[:67, :93].astype(np.float32)
    waves = [np.sin(rows / (2 + k) + columns * columns / (50 + 20 * k)) for k in range(3)]
    image = (127.5 + 127 * np.stack(waves, axis=2)).astype(np.uint8)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    decoded = library.decode_jpeg(data, colorspace="BGR")
    return library if np.array_equal(decoded, cv2.imdecode(data, cv2.IMREAD_COLOR)) else None


def _is_upright(data: bytes) -> bool:
    """Whether a JPEG's segments are in order, and none of them turns the image."""
    at = len(_START)
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1 : at + 2]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return True
        if marker == _APP1 and _turns(data[at + 4 : end]):
            return False
        at = end
    return False


def _turns(segment: bytes) -> bool:
    """Whether EXIF turns the image, or cannot be read."""
    if not segment.startswith(b"Exif"):
        return False
    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(_ORIENTATION, 1) != 1
    except Exception:  # it raises SyntaxError, struct.error, OverflowError, ...
        return True
