"""yolods.data.augment.mosaic_boxes: boxes of a mosaic as ultralytics' classes give them, bit for
bit."""

import random
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
from ultralytics.data.augment import Mosaic, RandomPerspective
from ultralytics.utils.instance import Instances

from yolods.data.augment.mosaic_boxes import joined_boxes, moved_boxes

SIDE = 64


def label(rng: np.random.Generator, boxes: int) -> dict:
    height, width = rng.integers(20, SIDE + 1, 2).tolist()
    centres, sides = rng.uniform(0, 1, (boxes, 2)), rng.uniform(0, 0.5, (boxes, 2))
    rows = np.concatenate([centres, sides], 1).astype(np.float32)
    return {
        "im_file": "x",
        "ori_shape": (height, width),
        "img": np.zeros((height, width, 3), np.uint8),
        "cls": rng.integers(0, 9, (boxes, 1)).astype(np.float32),
        "instances": Instances(rows, np.zeros((0, 1000, 2), np.float32)),
    }


def drawn(seed: int, counts: tuple[int, ...]) -> tuple[dict, list, Mosaic]:
    """A label with its partners, the layout, and ultralytics' mosaic."""
    rng = np.random.default_rng(seed)
    labels = [label(rng, count) for count in counts]
    data = SimpleNamespace(cache="ram", get_image_and_label=lambda i: labels[1 + i])
    mosaic = Mosaic(data, imgsz=SIDE)
    mosaic.get_indexes = lambda: [0, 1, 2]
    random.seed(seed)
    return labels[0], mosaic.get_params(labels[0])["layout"], mosaic


@pytest.mark.parametrize(
    "counts", [(3, 5, 0, 40), (0, 0, 0, 0), (0, 1, 0, 0), (300, 300, 300, 300)]
)
@pytest.mark.parametrize("motion", [{}, {"degrees": 45.0, "shear": 9.0}, {"perspective": 0.001}])
def test_they_are_ultralytics_own(counts, motion):
    for seed in range(5):
        given, layout, mosaic = drawn(seed, counts)
        boxes, classes = joined_boxes(deepcopy(layout), 2 * SIDE)
        theirs = mosaic.apply_instances(given, {"layout": layout})
        assert np.array_equal(boxes, theirs["instances"].bboxes) and boxes.dtype == np.float32
        assert np.array_equal(classes, theirs["cls"])
        affine = RandomPerspective(**motion, size=(SIDE, SIDE))
        moved = affine.get_params({"img": np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)})
        instances, left = moved_boxes(affine, moved, boxes, classes)
        theirs = affine.apply_instances(theirs, moved)
        assert np.array_equal(instances.bboxes, theirs["instances"].bboxes)
        assert np.array_equal(left, theirs["cls"])
        assert not instances.normalized and instances._bboxes.format == "xyxy"
