"""Sizes of images, and of the batches of an evaluation, exactly as ultralytics has them."""

from __future__ import annotations

import math

import cv2
import numpy as np


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """The image with a long side of `side` pixels; itself if it has that already.

    Args:
        image: (h, w, channels) uint8.
        side: pixels.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return image
    # Rounded up and limited as in ultralytics' load_image, so that pixels are the same.
    size = tuple(min(math.ceil(length * scale), side) for length in (width, height))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image[..., None] if image.ndim == 2 else image


def fitted(shapes: np.ndarray, side: int) -> np.ndarray:
    """(n, 2) int64 height and width to which `fit` scales images.

    Args:
        shapes: (n, 2) height and width of each image in pixels.
        side: pixels.
    """
    scaled = shapes * (side / shapes.max(1, keepdims=True))
    return np.minimum(np.ceil(scaled), side).astype(np.int64)


def rectangles(
    sides: np.ndarray, batch: int, *, imgsz: int, stride: int, pad: float
) -> tuple[np.ndarray, np.ndarray]:
    """Images sorted by aspect ratio, and one shape for each `batch` of them.

    ultralytics' own method searches the whole set for each batch (8.4.190 data/base.py:429), so
    its time grows with the square of the set.

    Args:
        sides: (n, 2) height and width of each image in pixels.
        batch: images that share a shape.
        imgsz: long side in pixels.
        stride: pixels; sides are multiples of it.
        pad: further strides.

    Returns:
        (n,) places of the images in their new order, and (batches, 2) int height and width.
    """
    ratios = sides[:, 0] / sides[:, 1]
    order = ratios.argsort()
    first = np.arange(0, len(sides), batch)
    flattest = ratios[order[first]]
    tallest = ratios[order[np.minimum(first + batch, len(sides)) - 1]]
    # A batch's share of the square's height and width: below 1 only if all of its images are
    # flat, or all are tall.
    shares = np.stack((np.minimum(tallest, 1), 1 / np.maximum(flattest, 1)), axis=1)
    return order, np.ceil(shares * imgsz / stride + pad).astype(int) * stride
