"""yolods.data.leaks.sheet: the nearest pairs side by side, whatever the images and names are."""

import warnings

import numpy as np
import pytest
from PIL import Image

from yolods.data.leaks import sheet
from yolods.data.leaks.search import Pair
from yolods.data.leaks.sheet import draw_sheet
from yolods.data.leaks.warning import SplitImages
from yolods.data.source import Unreadable

RED, BLUE = (0, 0, 250), (250, 0, 0)  # BGR


def images(split: str, colour, count: int = 30, name: str = "{}.jpg", groups=()) -> SplitImages:
    def read(row: int) -> np.ndarray:
        return np.full((90, 120, len(colour)), colour, np.uint8)

    return SplitImages(split, [name.format(row) for row in range(count)], read, groups)


def places(file, near) -> np.ndarray:
    """(n, 2) row and column of the pixels of about this RGB colour."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.argwhere(np.abs(pixels - near).max(2) < 30)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_validation_is_left_and_training_right_in_their_colours(tmp_path, suffix):
    file = tmp_path / f"leaks.{suffix}"
    draw_sheet([Pair(2, 1, 5)], images("train", BLUE), images("val", RED), file)
    red, blue = places(file, (250, 0, 0)), places(file, (0, 0, 250))
    assert len(red) > 40_000 and abs(len(red) - len(blue)) < 2000
    assert red[:, 1].max() < blue[:, 1].min()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def drawn(monkeypatch) -> list[tuple[str, int]]:
    """Notes what is drawn."""
    seen = []
    monkeypatch.setattr(
        sheet, "_picture", lambda side, row: seen.append((side.split, row)) or sheet._cross()
    )
    return seen


def test_the_nearest_twelve_are_drawn(tmp_path, monkeypatch):
    seen = drawn(monkeypatch)
    pairs = [Pair(row, 29 - row, row) for row in range(20)]
    draw_sheet(pairs, images("train", RED), images("val", RED), tmp_path / "leaks.jpg")
    assert seen == [each for row in range(12) for each in (("val", 29 - row), ("train", row))]


def test_of_a_video_only_the_nearest_pair_is_drawn(tmp_path, monkeypatch):
    seen = drawn(monkeypatch)
    train = images("train", RED, groups=["a.mp4"] * 15 + ["b.mp4"] * 15)
    val = images("val", RED, groups=["a.mp4"] * 15 + ["b.mp4"] * 15)
    pairs = [Pair(row, row, row) for row in range(20)]
    draw_sheet(pairs, train, val, tmp_path / "leaks.jpg")
    assert seen == [("val", 0), ("train", 0), ("val", 15), ("train", 15)]


@pytest.mark.parametrize("colour", [(200,), (0, 0, 200, 9), (0, 0, 200, 9, 9)])
def test_any_number_of_channels(tmp_path, colour):
    file = tmp_path / "leaks.png"
    draw_sheet([Pair(0, 0, 5)], images("train", colour), images("val", colour), file)
    assert len(places(file, (200,) * 3 if len(colour) == 1 else (200, 0, 0))) > 80_000


def test_an_image_that_is_gone_is_a_cross(tmp_path):
    def gone(row: int) -> np.ndarray:
        raise Unreadable("x.jpg")

    file = tmp_path / "leaks.png"
    draw_sheet([Pair(0, 0, 5)], SplitImages("train", ["x.jpg"], gone), images("val", RED), file)
    assert len(places(file, (250, 0, 0))) > 40_000 and len(places(file, (200, 200, 200))) > 30_000


def test_names_may_be_anything(tmp_path):
    val = images("val", RED, name="cost$_{{{}}}$^" + "x" * 90 + "\udcff.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = images("train", BLUE, name="猫{}.jpg")
        draw_sheet([Pair(0, 0, 5)], train, val, tmp_path / "leaks.png")
    assert (tmp_path / "leaks.png").stat().st_size > 3000


def test_without_pairs_nothing_is_written(tmp_path):
    draw_sheet([], images("train", RED), images("val", RED), tmp_path / "leaks.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError):
        draw_sheet([Pair(0, 0, 1)], images("train", RED), images("val", RED), tmp_path / "no/x.png")
