"""yolods.data.pack.decode: bytes in memory give the pixels that a file of them gives."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.indexes import image_files
from yolods.data.images.jpeg import simplejpeg
from yolods.data.pack import decode as decode_module
from yolods.data.pack.decode import Undecodable, decode_image, upright_jpeg_shape

PIXELS = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8), (5, 5), 1
)


@pytest.fixture(autouse=True)
def fresh_decoder():
    simplejpeg.cache_clear()
    yield
    simplejpeg.cache_clear()


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def turned(file):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save(file, exif=exif)


WRITERS = {
    "plain.jpg": lambda file: cv2.imwrite(file, PIXELS),
    "grey.jpg": lambda file: cv2.imwrite(file, PIXELS[..., 0]),
    "turned.jpg": turned,
    "cmyk.jpg": lambda file: Image.fromarray(PIXELS).convert("CMYK").save(file),
    "a.png": lambda file: cv2.imwrite(file, PIXELS),
    "alpha.png": lambda file: Image.fromarray(PIXELS).convert("RGBA").save(file),
    "deep.png": lambda file: cv2.imwrite(file, PIXELS.astype(np.uint16) * 257),
    "a.bmp": lambda file: cv2.imwrite(file, PIXELS),
    "a.webp": lambda file: cv2.imwrite(file, PIXELS),
    "a.tif": lambda file: cv2.imwrite(file, PIXELS),
    "pages.tiff": lambda file: cv2.imwritemulti(file, [PIXELS[..., 0], PIXELS[..., 1]]),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pixels_are_those_of_the_file(tmp_path, name, channels):
    file = str(tmp_path / name)
    WRITERS[name](file)
    expected = image_files([file], tmp_path, channels).read(0)
    data = (tmp_path / name).read_bytes()
    suffix = name[name.index(".") :]
    if expected.shape[2] == channels:
        assert np.array_equal(decode_image(as_array(data), suffix, channels), expected)
    if upright_jpeg_shape(data):
        quick = decode_image(as_array(data), suffix, channels, plain_jpeg=True)
        assert np.array_equal(quick, expected)


def test_only_a_jpeg_in_colour_that_lies_upright_is_plain(tmp_path):
    for name, write in WRITERS.items():
        write(str(tmp_path / name))
        shape = upright_jpeg_shape((tmp_path / name).read_bytes())
        assert shape == ((61, 83) if name == "plain.jpg" else None), name
    assert upright_jpeg_shape(b"no image") is None


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ""])
@pytest.mark.parametrize("data", [b"", b"no image", b"BM"])
@pytest.mark.parametrize("plain_jpeg", [False, True])
def test_what_is_no_image_is_said(suffix, data, plain_jpeg):
    with pytest.raises(Undecodable):
        decode_image(as_array(data), suffix, 3, plain_jpeg=plain_jpeg)


FACTORS = ["411", "420", "422", "440", "444"]


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("factor", FACTORS)
def test_simplejpeg_gives_the_pixels_of_cv2(factor, progressive):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    assert simplejpeg() is not None, "its pixels differ from those of cv2"
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")
    for quality in (30, 75, 95, 100):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
        options += [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
        data = cv2.imencode(".jpg", PIXELS, options)[1]
        quick = decode_image(data, "", 3, plain_jpeg=True)
        assert np.array_equal(quick, cv2.imdecode(data, cv2.IMREAD_COLOR))
        assert quick.flags.writeable


class Foreign:
    """Stands in for simplejpeg: as the real one, or with other pixels."""

    def __init__(self, off: int = 0) -> None:
        self.off, self.calls = off, 0

    def decode_jpeg(self, data: np.ndarray, colorspace: str) -> np.ndarray:
        self.calls += 1
        image = cv2.imdecode(np.asarray(data), cv2.IMREAD_COLOR)
        if image is None or colorspace != "BGR":
            raise ValueError("not a JPEG")
        return image + np.uint8(self.off)


@pytest.mark.parametrize("off", [0, 1])
def test_another_decoder_is_only_used_if_its_pixels_are_the_same(monkeypatch, off):
    foreign = Foreign(off)
    monkeypatch.setitem(sys.modules, "simplejpeg", foreign)
    data = cv2.imencode(".jpg", PIXELS)[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)
    for plain_jpeg in (True, False):
        assert np.array_equal(decode_image(data, "", 3, plain_jpeg=plain_jpeg), expected)
    # Once to compare, and once for the JPEG that is plain.
    assert foreign.calls == (1 if off else 2)


def test_what_the_other_decoder_refuses_is_left_to_cv2(monkeypatch):
    def refuse(data, colorspace):
        raise ValueError("Premature end of JPEG file")

    monkeypatch.setattr(decode_module, "simplejpeg", lambda: SimpleNamespace(decode_jpeg=refuse))
    data = cv2.imencode(".jpg", PIXELS)[1]
    expected = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert np.array_equal(decode_image(data, "", 3, plain_jpeg=True), expected)
