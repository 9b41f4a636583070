"""yolods.data.images.jpeg: the pixels are cv2's, and cv2 decides wherever they might not be."""

import io
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from yolods.data.images.jpeg import decode_upright, simplejpeg

ORIENTATION = 0x0112
SAMPLINGS = (
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
)


@pytest.fixture
def fast():
    if simplejpeg() is None:
        pytest.skip("simplejpeg is not installed: pip install 'yolods[fast]'")


def image(height: int = 37, width: int = 61) -> np.ndarray:
    rng = np.random.default_rng(height)
    small = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(**further) -> bytes:
    """By Pillow, which can write EXIF and other modes."""
    mode = further.pop("mode", "RGB")
    file = io.BytesIO()
    Image.fromarray(image()).convert(mode).save(file, "JPEG", **further)
    return file.getvalue()


def exif(orientation: int | None) -> Image.Exif:
    made = Image.Exif()
    made[0x010F] = "a camera"
    if orientation is not None:
        made[ORIENTATION] = orientation
    return made


def by_cv2(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("progressive", [0, 1])
def test_the_pixels_are_cv2_s(fast, sampling, progressive):
    for height, width in ((37, 61), (8, 8), (1, 50), (233, 411)):
        for quality in (5, 75, 95, 100):
            options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
            options += [sampling, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
            data = cv2.imencode(".jpg", image(height, width), options)[1].tobytes()
            ours = decode_upright(data)
            assert np.array_equal(ours, by_cv2(data))
            assert ours.flags.writeable


@pytest.mark.parametrize("orientation", [None, 1])
def test_exif_of_an_upright_image(fast, orientation):
    data = jpeg(exif=exif(orientation))
    assert np.array_equal(decode_upright(data), by_cv2(data))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_image_that_exif_turns_is_left_to_cv2(fast, orientation):
    data = jpeg(exif=exif(orientation))
    assert decode_upright(data) is None
    assert not np.array_equal(by_cv2(data), by_cv2(jpeg()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        jpeg(mode="L"),
        jpeg(mode="CMYK"),
        jpeg()[:400],
        jpeg()[:-300],
        jpeg()[:2] + b"\x00\x01" + jpeg()[2:],
        jpeg(exif=b"Exif\x00\x00II*\x00\xff\xff\xff"),
        cv2.imencode(".png", image())[1].tobytes(),
    ],
    ids=["empty", "text", "grey", "CMYK", "head", "cut", "garbage", "bad EXIF", "png"],
)
def test_what_is_not_a_whole_jpeg_in_colour_is_left_to_cv2(fast, data):
    assert decode_upright(data) is None


def test_a_comment_and_xmp_are_passed_over(fast):
    data = jpeg(comment=b"\xff\xe1\x00\x08Exif", xmp=b"<x:xmpmeta>")
    assert np.array_equal(decode_upright(data), by_cv2(data))


def test_without_simplejpeg_cv2_decides(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    simplejpeg.cache_clear()
    assert decode_upright(jpeg()) is None
    monkeypatch.undo()
    simplejpeg.cache_clear()


def test_a_library_with_other_pixels_is_not_used(monkeypatch):
    class Other:
        @staticmethod
        def decode_jpeg(data, colorspace):
            return by_cv2(bytes(data)) ^ 1

    monkeypatch.setitem(sys.modules, "simplejpeg", Other)
    simplejpeg.cache_clear()
    assert simplejpeg() is None
    monkeypatch.undo()
    simplejpeg.cache_clear()
