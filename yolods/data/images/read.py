"""Reads an image file to the pixels that ultralytics reads."""

from __future__ import annotations

import cv2
import numpy as np
from ultralytics.utils.patches import imread

from yolods.data.images.jpeg import decode_upright, simplejpeg

READ_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}
"""How cv2 reads a set of so many channels; other numbers: as the file has them."""


def read_image(file: str, channels: int) -> np.ndarray | None:
    """(h, w, channels) uint8, colours as BGR; None if it is not there or damaged.

    Args:
        file: an image file.
        channels: of the data set.
    """
    try:
        image = _fast(file) if channels == 3 else None
        if image is None:
            image = imread(file, flags=READ_FLAGS.get(channels, cv2.IMREAD_UNCHANGED))
    except (OSError, ValueError, cv2.error):
        return None
    return image[..., None] if image is not None and image.ndim == 2 else image


def _fast(file: str) -> np.ndarray | None:
    if simplejpeg() is None:
        return None
    with open(file, "rb") as stream:
        return decode_upright(stream.read())
