"""yolods.data.pack.bitmap: every tool reads what is written, and pixels are not copied."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from yolods.data.pack.bitmap import HEADERS, bitmap_pixels, bitmap_size, to_bitmap


def image(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def data_of(pixels: np.ndarray) -> np.ndarray:
    return np.frombuffer(bytearray(to_bitmap(pixels)), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(12, 16), (37, 61), (1, 1), (5, 2)])
def test_cv2_and_pillow_see_the_same_pixels(height, width, channels):
    pixels = image(height, width, channels)
    data = data_of(pixels)
    assert len(data) == bitmap_size(height, width, channels)
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    assert np.array_equal(cv2.imdecode(data, flag).reshape(pixels.shape), pixels)
    opened = Image.open(io.BytesIO(data.tobytes()))
    assert (opened.mode, opened.size) == ({1: "L", 3: "RGB"}[channels], (width, height))
    assert np.array_equal(np.asarray(opened).reshape(pixels.shape)[..., ::-1], pixels)
    assert np.array_equal(bitmap_pixels(data), pixels)


def test_pixels_are_a_writable_view_unless_rows_are_padded():
    data = data_of(image(12, 16, 3))
    pixels = bitmap_pixels(data)
    assert np.shares_memory(pixels, data) and pixels.flags.writeable
    padded = data_of(image(12, 15, 3))
    assert bitmap_pixels(padded).flags.c_contiguous
    assert not np.shares_memory(bitmap_pixels(padded), padded)


def test_other_files_are_left_to_a_decoder():
    pixels = image(12, 16, 3)
    other = cv2.imencode(".bmp", pixels)[1]
    assert bitmap_pixels(other) is None
    assert bitmap_pixels(data_of(pixels)[:-1]) is None
    assert bitmap_pixels(np.zeros(10, np.uint8)) is None
    coloured = data_of(image(12, 16, 1))
    coloured[HEADERS + 8] ^= 1  # another palette
    assert bitmap_pixels(coloured) is None


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="4 channels"):
        to_bitmap(image(4, 4, 4))
