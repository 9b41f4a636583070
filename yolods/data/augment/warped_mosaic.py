"""Mosaic and warp in one step: ultralytics' `Mosaic` and `RandomPerspective`, drawn by their own
random numbers."""

from __future__ import annotations

import random
from typing import Any

import cv2
from ultralytics.data.augment import Mosaic, RandomPerspective

from yolods.data.augment.mosaic_boxes import joined_boxes, moved_boxes
from yolods.data.augment.scratch import Scratch
from yolods.data.augment.warp import Piece, Warper
from yolods.data.index.labels import Label


class WarpedMosaic:
    """Takes the place of a mosaic and of the warp that follows it.

    The image that it returns has the fourth channel of `Warper.warp` only if the next steps know
    of it, and is overwritten by the next call if they do.
    """

    def __init__(
        self, mosaic: Mosaic, affine: RandomPerspective, scratch: Scratch, *, four: bool
    ) -> None:
        """
        Args:
            mosaic: of four images.
            affine: of a fixed size.
            scratch: arrays that may be overwritten.
            four: whether colours keep their fourth channel.
        """
        self._mosaic, self._affine, self._four = mosaic, affine, four
        self._warper = Warper(affine, scratch)

    def __call__(self, labels: Label) -> Label:
        """The mosaic, or with the probability that is left the image alone, warped."""
        mixed = random.uniform(0, 1) <= self._mosaic.p
        labels = self._of_four(labels) if mixed else self._alone(labels)
        labels["resized_shape"] = labels["img"].shape[:2]
        return labels

    def _of_four(self, labels: Label) -> Label:
        layout = self._mosaic.get_params(labels)["layout"]
        side = 2 * self._mosaic.imgsz
        motion = self._affine.get_params({"img": _Shape(side, side)})
        labels["img"] = self._warped([_piece(item) for item in layout], (side, side), motion)
        if any(len(item["labels_patch"]["instances"].segments) for item in layout):
            labels = self._mosaic.apply_instances(labels, {"layout": layout})
            labels = self._affine.apply_instances(labels, motion)
        else:
            found = joined_boxes(layout, side)
            labels["instances"], labels["cls"] = moved_boxes(self._affine, motion, *found)
        del labels["mix_labels"]
        return labels

    def _alone(self, labels: Label) -> Label:
        image = labels["img"]
        motion = self._affine.get_params(labels)
        labels["img"] = self._warped([Piece(image, 0, 0)], image.shape[:2], motion)
        return self._affine.apply_instances(labels, motion)

    def _warped(self, pieces: list[Piece], shape: tuple[int, int], motion: Label) -> Any:
        image = self._warper.warp(pieces, *shape, motion)
        if self._four:
            return image
        colours = pieces[0].pixels.shape[2] == 3
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR) if colours else image.copy()


class _Shape:
    """Stands in for a canvas, of which the motion needs only the shape."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width)


def _piece(item: Label) -> Piece:
    """The part of an image that a mosaic's layout shows."""
    image = item["labels_patch"]["img"]
    pixels = image[item["y1b"] : item["y2b"], item["x1b"] : item["x2b"]]
    return Piece(pixels, item["x1a"], item["y1a"])
