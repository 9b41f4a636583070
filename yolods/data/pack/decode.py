"""Decodes images out of memory to the pixels that ultralytics reads from their files."""

from __future__ import annotations

import io
import tempfile

import cv2
import numpy as np

from yolods.compat import image_opener
from yolods.data.images.jpeg import simplejpeg
from yolods.data.images.read import READ_FLAGS
from yolods.data.pack.bitmap import bitmap_pixels

READ_BY_NAME = (".tif", ".tiff", ".avif", ".heic", ".heif")
"""Files that ultralytics decodes in a way of their own, which it chooses by their names."""
EXIF_ORIENTATION = 274


class Undecodable(Exception):
    """Bytes that are not an image."""


def decode_image(
    data: np.ndarray, suffix: str, channels: int, *, plain_jpeg: bool = False
) -> np.ndarray:
    """The pixels of an image file, upright.

    Args:
        data: (bytes,) uint8, the file; a bitmap of ours may be returned as a view of it.
        suffix: ending of the file's name, with its dot.
        channels: of the data set.
        plain_jpeg: whether it is what `upright_jpeg_shape` accepts.

    Returns:
        (h, w, channels) uint8, colours as BGR; for other than 1 or 3 channels as many as it has.

    Raises:
        Undecodable: it is damaged.
    """
    image = None
    if plain_jpeg and channels == 3:
        image = _quickly(data)
    elif data[:2].tobytes() == b"BM":
        image = bitmap_pixels(data)
    if image is None or image.shape[2] != channels:
        image = _decoded(data, suffix, channels)
    if image is None:
        raise Undecodable
    return image[..., None] if image.ndim == 2 else image


def upright_jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width if this is a JPEG in colour that lies upright, for which all decoders agree.

    None for every other file.
    """
    try:
        with image_opener("")(io.BytesIO(data)) as image:
            plain = image.format == "JPEG" and image.mode == "RGB"
            if plain and image.getexif().get(EXIF_ORIENTATION, 1) in (0, 1):
                return image.height, image.width
    except Exception:  # decoders raise SyntaxError, struct.error, OverflowError, ...
        return None
    return None


def _decoded(data: np.ndarray, suffix: str, channels: int) -> np.ndarray | None:
    flag = READ_FLAGS.get(channels, cv2.IMREAD_UNCHANGED)
    try:
        if suffix.lower() in READ_BY_NAME:
            return _decoded_by_name(data, suffix, flag)
        image = cv2.imdecode(data, flag) if len(data) else None
    except (OSError, ValueError, cv2.error):
        return None
    if image is not None and image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return image


def _decoded_by_name(data: np.ndarray, suffix: str, flag: int) -> np.ndarray | None:
    from ultralytics.utils.patches import imread

    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data.data)
        file.flush()
        return imread(file.name, flags=flag)


def _quickly(data: np.ndarray) -> np.ndarray | None:
    """A JPEG decoded by simplejpeg; None if it is not there, or the JPEG is not in order."""
    library = simplejpeg()
    if library is None:
        return None
    try:
        return library.decode_jpeg(data, colorspace="BGR")
    except ValueError:
        return None  # cv2 decides about damage
