"""How many boxes the samples of a data set hold, as far as the loss's memory depends on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AREAS = (0.001, 0.004, 0.01, 0.03, 0.08, 0.25)
"""Shares of an image that boxes cover, where nothing is known about them: an assumption."""
PARTS = 16
"""Sizes by which a data set's boxes are described."""
TILES = 4
"""Images in a mosaic."""


@dataclass(frozen=True)
class BoxCounts:
    """Boxes per training sample."""

    mean: float
    """Of all samples."""
    most: int
    """Of the fullest sample."""
    areas: tuple[float, ...] = AREAS
    """Shares of the image that boxes cover, 0 to 1; each stands for as many boxes as any other."""

    def in_batch(self, images: int) -> int:
        """Boxes of a full micro-batch: one sample has the most, and the others have the mean.

        An upper estimate of what nearly all micro-batches hold.
        """
        return round(self.most + (images - 1) * self.mean)


def box_counts(boxes: np.ndarray, areas: np.ndarray, mosaic: float = 1.0) -> BoxCounts:
    """Counts of a data set's samples, from its labels.

    A mosaic is made of four images. It cuts boxes at its borders and drops those of which too
    little remains; that none is dropped makes this an upper estimate.

    Args:
        boxes: (images,) number of boxes of each image.
        areas: (boxes,) width x height of every box, in shares of its image's sides.
        mosaic: share of the samples that are mosaics.
    """
    if not len(boxes) or not len(areas):
        return BoxCounts(0.0, 0)
    mean, most = float(boxes.mean()), int(boxes.max())
    others = TILES - 1
    parts = np.array_split(np.sort(areas.astype(float)), min(PARTS, len(areas)))
    return BoxCounts(
        mean * (1 + others * mosaic),
        round(most + others * mean * (mosaic > 0)),
        tuple(float(part.mean()) for part in parts),
    )
