"""Boxes of a mosaic's images, all at once, with the values of ultralytics' `Instances`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ultralytics.data.augment import RandomPerspective
from ultralytics.utils.instance import Instances

NO_SEGMENTS = np.zeros((0, 1000, 2), np.float32)
"""In the shape that ultralytics gives them."""


def joined_boxes(layout: Sequence[dict[str, Any]], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes of a mosaic's images on its canvas.

    Args:
        layout: a mosaic's, as `Mosaic.get_params` draws it, of images without segments.
        side: pixels of the canvas, at which boxes are cut off.

    Returns:
        (n, 4) float32 left, top, right and bottom in pixels, and (n, 1) classes; boxes without an
        area are left out.
    """
    patches = [item["labels_patch"] for item in layout]
    given = [patch["instances"].bboxes for patch in patches]
    sides = np.array([item["img_shape"][::-1] * 2 for item in layout], np.float32)
    shifts = np.array([(item["padw"], item["padh"]) * 2 for item in layout], np.float32)
    counts = [len(each) for each in given]
    boxes = _corners(np.concatenate(given))
    boxes *= np.repeat(sides, counts, axis=0)
    boxes += np.repeat(shifts, counts, axis=0)
    np.clip(boxes, 0, side, out=boxes)
    good = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) > 0
    return boxes[good], np.concatenate([patch["cls"] for patch in patches])[good]


def _corners(boxes: np.ndarray) -> np.ndarray:
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=1)


def moved_boxes(
    affine: RandomPerspective, motion: dict[str, Any], boxes: np.ndarray, classes: np.ndarray
) -> tuple[Instances, np.ndarray]:
    """Boxes after a warp, without those of which too little is left, and their classes.

    Args:
        affine: it decides what is too little.
        motion: drawn by it.
        boxes: (n, 4) float32 left, top, right and bottom in pixels before the warp.
        classes: (n, 1).
    """
    width, height = motion["size"]
    after = affine.apply_bboxes(boxes, motion["M"])
    np.clip(after, 0, np.array([width, height] * 2, np.float32), out=after)
    keep = affine.box_candidates((boxes * np.float32(motion["scale"])).T, after.T)
    return Instances(after[keep], NO_SEGMENTS, None, "xyxy", False), classes[keep]
