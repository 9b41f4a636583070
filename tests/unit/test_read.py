"""yolods.data.images.read: files as ultralytics reads them."""

import cv2
import numpy as np
import pytest
from ultralytics.utils.patches import imread

from yolods.data.images.read import read_image


def write(folder, suffix: str, channels: int = 3) -> str:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    file = folder / f"x.{suffix}"
    assert cv2.imwrite(str(file), image)
    return str(file)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
def test_it_is_what_ultralytics_reads(tmp_path, suffix):
    file = write(tmp_path, suffix)
    assert np.array_equal(read_image(file, 3), imread(file, flags=cv2.IMREAD_COLOR))
    grey = read_image(file, 1)
    assert grey.shape == (20, 30, 1)
    assert np.array_equal(grey, imread(file, flags=cv2.IMREAD_GRAYSCALE))


def test_other_channels_are_those_of_the_file(tmp_path):
    assert read_image(write(tmp_path, "png", 4), 4).shape == (20, 30, 4)
    assert read_image(write(tmp_path, "jpg", 3), 4).shape == (20, 30, 3)


def test_what_cannot_be_read_is_none(tmp_path):
    damaged = tmp_path / "a.jpg"
    for content in (b"", b"no image", b"\xff\xd8\xff"):
        damaged.write_bytes(content)
        assert read_image(str(damaged), 3) is None
    assert read_image(str(tmp_path / "absent.jpg"), 3) is None
    assert read_image(str(tmp_path), 3) is None
