"""A JPEG's size out of its header is what Pillow says of the file, or nothing is said."""

from __future__ import annotations

import io
import random

import cv2
import numpy as np
import pytest
from PIL import Image

from yolods.data.index.jpeg_header import plain_jpeg_shape, shape_in
from yolods.data.verify import _opened_shape

PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8), (96, 72))


def jpeg(**options) -> bytes:
    """A JPEG of 96x72 pixels as Pillow writes it."""
    stream = io.BytesIO()
    Image.fromarray(options.pop("picture", PICTURE)).save(stream, "jpeg", **options)
    return stream.getvalue()


def by_opencv(*options: int) -> bytes:
    return cv2.imencode(".jpg", PICTURE, options)[1].tobytes()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


PLAIN = {
    "pillow": jpeg(),
    "progressive": jpeg(progressive=True),
    "grey": jpeg(picture=PICTURE[..., 0]),
    "opencv": by_opencv(),
    "restart intervals": by_opencv(cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "comment": jpeg(comment=b"a word"),
}
UNUSUAL = {
    "turned": turned(),
    "profile": jpeg(icc_profile=b"x" * 9000),
    "text": b"no image",
    "png": cv2.imencode(".png", PICTURE)[1].tobytes(),
    "empty": b"",
    "cut off": jpeg()[:-40],
    "longer": jpeg() + b"more",
    "only a start": jpeg()[:2],
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_shape_of_a_plain_file(tmp_path, name):
    file = tmp_path / "a.jpg"
    file.write_bytes(PLAIN[name])
    assert plain_jpeg_shape(str(file)) == _opened_shape(str(file)) == (72, 96)


@pytest.mark.parametrize("name", UNUSUAL)
def test_nothing_is_said_of_another_file(tmp_path, name):
    file = tmp_path / "a.jpg"
    file.write_bytes(UNUSUAL[name])
    assert plain_jpeg_shape(str(file)) is None


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        plain_jpeg_shape(str(tmp_path / "gone.jpg"))


@pytest.mark.parametrize("name", PLAIN)
def test_of_a_spoiled_header_the_same_is_said_as_by_pillow_or_nothing(tmp_path, name):
    """Bytes of the header are changed, left out and repeated; what is named a plain JPEG then is
    one for Pillow, with the same size."""
    draw, said = random.Random(name), 0
    whole = PLAIN[name]
    end = whole.index(b"\xff\xda") + 14
    file = tmp_path / "a.jpg"
    for _ in range(1500):
        spoiled = bytearray(whole)
        place = draw.randrange(end)
        kind = draw.randrange(3)
        if kind == 0:
            spoiled[place] = draw.randrange(256)
        elif kind == 1:
            del spoiled[place : place + draw.randrange(1, 4)]
        else:
            spoiled[place:place] = whole[place : place + draw.randrange(1, 40)]
        shape = shape_in(bytes(spoiled[:4096]))
        if shape is not None:
            said += 1
            file.write_bytes(spoiled)
            assert _opened_shape(str(file)) == shape
    assert said > 100
