"""Sizes of images and of evaluation batches are those of ultralytics."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from ultralytics.data.dataset import YOLODataset

from yolods.data.resize import fit, fitted, rectangles


def sides_of(count: int, seed: int = 0) -> np.ndarray:
    """Heights and widths of images of all shapes."""
    return np.random.default_rng(seed).integers(1, 2000, (count, 2))


@pytest.mark.parametrize(("count", "batch"), [(1, 16), (16, 16), (17, 16), (200, 3), (50, 1)])
def test_shapes_of_evaluation_batches_are_those_of_ultralytics(count, batch):
    sides = sides_of(count)
    theirs = SimpleNamespace(
        ni=count,
        batch_size=batch,
        labels=[{"shape": tuple(side)} for side in sides.tolist()],
        im_files=[str(place) for place in range(count)],
        imgsz=640,
        stride=32,
        pad=0.5,
    )
    YOLODataset.set_rectangle(theirs)
    order, shapes = rectangles(sides, batch, imgsz=640, stride=32, pad=0.5)
    assert theirs.im_files == list(map(str, order))
    assert np.array_equal(shapes, theirs.batch_shapes)


@pytest.mark.slow
def test_sorting_an_evaluation_set_does_not_grow_with_the_square_of_the_set():
    """Seconds of CPU of sixteen times as many images: 16 times as many if it grows with the set,
    else up to 256."""

    def seconds(count: int) -> float:
        taken = []
        for _ in range(3):
            given = sides_of(count)
            began = time.process_time()
            rectangles(given, 1, imgsz=640, stride=32, pad=0.5)
            taken.append(time.process_time() - began)
        return min(taken)

    assert seconds(800_000) < 48 * seconds(50_000)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_an_image_is_scaled_to_its_long_side_and_left_alone_if_it_has_it(channels):
    image = np.random.default_rng(1).integers(0, 255, (30, 41, channels), np.uint8)
    assert fit(image, 41) is image
    assert fit(image, 20).shape == (15, 20, channels)
    assert fit(image, 82).shape == (60, 82, channels)


def test_sizes_of_scaled_images_are_known_without_them():
    shapes = np.random.default_rng(2).integers(10, 400, (200, 2)).astype(np.int32)
    for side in (31, 96, 333):
        scaled = [fit(np.zeros((*shape, 1), np.uint8), side).shape[:2] for shape in shapes.tolist()]
        assert fitted(shapes, side).tolist() == [list(shape) for shape in scaled]
