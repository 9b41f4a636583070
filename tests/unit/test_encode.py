"""yolods.data.pack.encode: what is stored is what training would have made of the file."""

import cv2
import numpy as np
import pytest
from PIL import Image

from yolods.data.pack.decode import Undecodable, decode_image
from yolods.data.pack.encode import Encoding, encode_image
from yolods.data.resize import fit

PIXELS = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8), (5, 5), 1
)
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
DECODED = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_COLOR)


def stored_pixels(data, identity, encoding, channels=3):
    made = encode_image(data, identity, encoding, channels)
    return made, decode_image(np.frombuffer(made.data, np.uint8), made.suffix, channels)


def test_files_are_kept_as_they_are():
    for data, name, plain in ((JPEG, "a.JPG", True), (PNG, "a.png", False)):
        made = encode_image(data, name, Encoding(), 3)
        assert (made.data, made.suffix, made.plain_jpeg) == (data, name[1:], plain)


def test_raw_pixels_are_those_of_the_file_at_training_size():
    made, pixels = stored_pixels(JPEG, "a.jpg", Encoding(48, uncompressed=True))
    assert made.suffix == ".bmp" and not made.plain_jpeg
    assert np.array_equal(pixels, fit(DECODED, 48))


@pytest.mark.parametrize("raw", [True, False])
def test_smaller_images_are_not_enlarged(raw):
    _, pixels = stored_pixels(JPEG, "a.jpg", Encoding(160, uncompressed=raw))
    assert np.array_equal(pixels, DECODED)


def test_a_jpeg_that_is_small_enough_is_not_compressed_again():
    made = encode_image(JPEG, "a.jpeg", Encoding(83, quality=10), 3)
    assert made.data == JPEG and made.suffix == ".jpg" and made.plain_jpeg


@pytest.mark.parametrize(("data", "name", "side"), [(JPEG, "a.jpg", 48), (PNG, "a.png", 83)])
def test_other_images_become_jpegs_of_the_quality(data, name, side):
    sizes = []
    for quality in (50, 95):
        made, pixels = stored_pixels(data, name, Encoding(side, quality))
        assert made.suffix == ".jpg" and made.plain_jpeg
        assert max(pixels.shape) == side
        sizes.append(len(made.data))
    assert sizes[0] < sizes[1]


def test_an_image_that_is_turned_by_its_exif_is_stored_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    assert encode_image(data, "a.jpg", Encoding(), 3).data == data
    for encoding in (Encoding(83), Encoding(83, uncompressed=True)):
        made, pixels = stored_pixels(data, "a.jpg", encoding)
        assert made.data != data
        assert pixels.shape == (83, 61, 3)
        with_exif = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(pixels.astype(int) - with_exif).mean() < 3


def test_pixels_become_a_jpeg_also_without_a_size():
    made, pixels = stored_pixels(PIXELS, "clip/000001", Encoding())
    assert made.suffix == ".jpg" and pixels.shape == PIXELS.shape
    made, pixels = stored_pixels(PIXELS[..., :1], "clip/000001", Encoding(), channels=1)
    assert not made.plain_jpeg and pixels.shape == (61, 83, 1)


def test_a_file_without_an_ending_is_taken_for_a_jpeg():
    assert encode_image(JPEG, "clip.mp4/000001", Encoding(), 3).suffix == ".jpg"


def test_grey_sets_have_grey_pixels():
    _, pixels = stored_pixels(JPEG, "a.jpg", Encoding(48, uncompressed=True), channels=1)
    grey = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(pixels, fit(grey[..., None], 48))


def test_what_cannot_be_stored_is_said():
    with pytest.raises(Undecodable):
        encode_image(b"no image", "a.jpg", Encoding(48), 3)
    for raw in (True, False):
        with pytest.raises(ValueError, match="4 channels"):
            encode_image(np.zeros((9, 9, 4), np.uint8), "a", Encoding(48, uncompressed=raw), 4)


def test_settings_name_the_library_only_where_it_makes_bytes():
    assert Encoding().as_dict()["opencv"] is None
    assert Encoding(64).as_dict() == {
        "imgsz": 64,
        "quality": 95,
        "uncompressed": False,
        "opencv": cv2.__version__,
    }
