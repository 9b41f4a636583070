"""yolods.data.augment.warp: the pixels of ultralytics' RandomPerspective, bit for bit, although
little of the canvas is drawn."""

import random

import numpy as np
import pytest
from ultralytics.data.augment import RandomPerspective

from yolods.data.augment.scratch import Scratch
from yolods.data.augment.warp import MARGIN, Area, Piece, Warper, read_area

SIZE = (61, 47)
"""Width and height of results."""
MOTIONS = (
    {"scale": 0.5, "translate": 0.1},
    {"scale": (0.05, 0.1)},
    {"scale": (6.0, 9.0), "translate": 0.5},
    {"degrees": 180.0, "shear": 30.0, "translate": 0.5},
    {"perspective": 0.002},
    {"scale": (1.0, 1.0), "translate": 1.0},
)


def pieces(channels: int) -> list[Piece]:
    rng = np.random.default_rng(channels)

    def noise(height: int, width: int) -> np.ndarray:
        return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)

    # A part of a larger image, one that lies in a corner, and one that covers a part of another.
    return [
        Piece(noise(90, 90)[7:67, 5:65], 0, 3),
        Piece(noise(40, 33), 87, 60),
        Piece(noise(20, 20), 30, 40),
    ]


def canvas(parts: list[Piece], height: int, width: int) -> np.ndarray:
    """As ultralytics would draw it."""
    made = np.full((height, width, parts[0].pixels.shape[2]), 114, np.uint8)
    for part in parts:
        rows, columns = part.pixels.shape[:2]
        made[part.top : part.top + rows, part.left : part.left + columns] = part.pixels
    return made


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("motion", MOTIONS)
def test_the_pixels_are_ultralytics_own(channels, motion):
    scratch, parts = Scratch(), pieces(channels)
    affine = RandomPerspective(**motion, size=SIZE)
    warper = Warper(affine, scratch)
    random.seed(str(motion))
    for _ in range(20):
        labels = {"img": canvas(parts, 100, 120)}
        drawn = affine.get_params(labels)
        for kept in scratch._arrays.values():
            kept.fill(200)  # what was there before must not be seen
        ours = warper.warp(parts, 100, 120, drawn)
        assert ours.shape == (SIZE[1], SIZE[0], 4 if channels == 3 else channels)
        theirs = affine.apply_image(labels, drawn)["img"]
        assert np.array_equal(ours[..., :channels], theirs)


def test_only_what_is_read_is_drawn():
    scratch, parts = Scratch(), pieces(3)
    affine = RandomPerspective(scale=(4.0, 4.0), translate=0.0, size=SIZE)
    drawn = affine.get_params({"img": canvas(parts, 100, 120)})
    scratch.array("canvas", 100, 120, 4).fill(200)
    Warper(affine, scratch).warp(parts, 100, 120, drawn)
    drawn_on = (scratch.array("canvas", 100, 120, 4) != 200).any(axis=2)
    area = read_area(drawn["M"], SIZE)
    assert drawn_on[area.top : area.bottom, area.left : area.right].sum() == drawn_on.sum()
    assert 0 < area.right - area.left <= 61 / 4 + 2 * MARGIN + 2
    assert 0 < area.bottom - area.top <= 47 / 4 + 2 * MARGIN + 2


def test_an_image_that_is_scaled_to_nothing():
    affine = RandomPerspective(scale=(0.0, 0.0), size=SIZE)
    parts = pieces(3)
    labels = {"img": canvas(parts, 100, 120)}
    drawn = affine.get_params(labels)
    assert read_area(drawn["M"], SIZE).shared(Area(0, 0, 120, 100)) == (0, 0, 120, 100)
    ours = Warper(affine, Scratch()).warp(parts, 100, 120, drawn)
    assert np.array_equal(ours[..., :3], affine.apply_image(labels, drawn)["img"])


@pytest.mark.parametrize("motion", [each for each in MOTIONS if "perspective" not in each])
def test_the_area_is_where_the_corners_come_from(motion):
    affine = RandomPerspective(**motion, size=SIZE)
    random.seed(str(motion))
    corners = np.array([[0, SIZE[0], 0, SIZE[0]], [0, 0, SIZE[1], SIZE[1]], [1, 1, 1, 1]])
    for _ in range(20):
        matrix = affine.get_params({"img": np.zeros((100, 120, 3), np.uint8)})["M"]
        x, y, _ = np.linalg.solve(matrix.astype(float), corners)
        area = read_area(matrix, SIZE)
        expected = x.min() - MARGIN, y.min() - MARGIN, x.max() + MARGIN, y.max() + MARGIN
        assert np.abs(np.array(area) - expected).max() <= 1.001
        assert area.left <= x.min() and area.right >= x.max()
        assert area.top <= y.min() and area.bottom >= y.max()


def test_an_area_without_another_has_each_other_pixel_once():
    rng = np.random.default_rng(0)
    for _ in range(300):
        one, other = (Area(*ends) for ends in rng.integers(-3, 9, (2, 4)).tolist())
        expected, found = np.zeros((2, 16, 16), int)
        for x, y in np.ndindex(16, 16):
            inside = one.left <= x < one.right and one.top <= y < one.bottom
            covered = other.left <= x < other.right and other.top <= y < other.bottom
            expected[y, x] = inside and not covered
        for part in one.without(other):
            for x, y in np.ndindex(16, 16):
                found[y, x] += part.left <= x < part.right and part.top <= y < part.bottom
        assert np.array_equal(found, expected)
