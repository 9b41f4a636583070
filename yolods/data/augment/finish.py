"""The last steps in one: ultralytics' `RandomHSV`, its two `RandomFlip`s and `Format`, drawn by
their own random numbers, without a copy between them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from ultralytics.data.augment import Format, RandomFlip, RandomHSV

from yolods.data.augment.scratch import Scratch
from yolods.data.index.labels import Label

IMAGE_OUT = "out"
"""Key of the array that a sample's image is written into: (channels, h, w) uint8."""
_LEVELS = np.arange(256.0)
_HUES = 180
"""Values of a hue in cv2."""


class Finish:
    """Jitters colours, flips, and turns an image and its boxes into tensors."""

    def __init__(
        self, hsv: RandomHSV, flips: Sequence[RandomFlip], form: Format, scratch: Scratch
    ) -> None:
        """
        Args:
            hsv: its limits of gains.
            flips: up-down and left-right flips.
            form: of boxes alone.
            scratch: arrays that may be overwritten.
        """
        self._flips, self._bgr, self._scratch = flips, form.bgr, scratch
        self._limits = np.array([hsv.hgain, hsv.sgain, hsv.vgain])

    def __call__(self, labels: Label) -> Label:
        """The finished sample: img (channels, h, w) uint8, cls (n, 1), bboxes (n, 4) float32
        normalised xywh, batch_idx (n) of zeros.

        Args:
            labels: with `img` as BGR, with a further channel or without, or of any other number of
                channels, and `IMAGE_OUT`.
        """
        image, planes = labels["img"], labels.pop(IMAGE_OUT)
        if len(planes) == 3 and self._limits.any():
            image = self._jittered(image, self.drawn_gains())
        ways = []
        for flip in self._flips:
            drawn = flip.get_params(labels)
            labels = flip.apply_instances(labels, drawn)
            ways += [_WAYS[flip.direction]] if drawn["flip"] else []
        swapped = random.uniform(0, 1) > self._bgr and len(planes) == 3
        _split(image, planes[::-1] if swapped else planes)
        for way in ways:
            for plane in planes:
                cv2.flip(plane, way, dst=plane)
        labels["img"] = torch.from_numpy(planes)
        return _with_boxes(labels, *planes.shape[1:])

    def drawn_gains(self) -> np.ndarray:
        """(3,) float64 gains of hue, saturation and value, as `RandomHSV` draws them."""
        return np.random.uniform(-1, 1, 3) * self._limits

    def _jittered(self, image: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """(h, w, 3) BGR out of BGR with a further channel or without; overwritten by the next
        call."""
        sides = image.shape[:2]
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV, dst=self._scratch.array("hsv", *sides, 3))
        # A table per plane is faster alone, but not with the split and the merge that it needs.
        cv2.LUT(hsv, _tables(gains), dst=hsv)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=hsv)


_WAYS = {"vertical": 0, "horizontal": 1}
"""Axes of cv2.flip."""


def _tables(gains: np.ndarray) -> np.ndarray:
    """(1, 256, 3) uint8 new hues, saturations and values by the old ones."""
    tables = np.empty((1, 256, 3), np.uint8)
    tables[..., 0] = (_LEVELS + gains[0] * _HUES) % _HUES
    tables[..., 1:] = np.clip(_LEVELS[:, None] * (gains[1:] + 1), 0, 255)
    tables[0, 0, 1] = 0  # so that white stays white
    return tables


def _split(image: np.ndarray, planes: np.ndarray) -> None:
    """Write each channel of an image into its plane; further channels are left out."""
    spare = [np.empty_like(planes[0])] * (image.shape[2] - len(planes))
    targets = [*planes, *spare]
    for target, channel in zip(targets, cv2.split(image, targets), strict=True):
        if not np.may_share_memory(target, channel):
            target[:] = channel


def _with_boxes(labels: Label, height: int, width: int) -> Label:
    """The labels with boxes as tensors, as ultralytics' `Format` makes them."""
    instances, classes = labels.pop("instances"), labels.pop("cls")
    instances.convert_bbox("xywh")
    instances.denormalize(width, height)
    boxes = instances.bboxes
    boxes /= np.array([width, height] * 2, np.float32)
    labels["cls"] = torch.from_numpy(classes) if len(boxes) else torch.zeros(0, 1)
    labels["bboxes"] = torch.from_numpy(boxes) if len(boxes) else torch.zeros(0, 4)
    labels["batch_idx"] = torch.zeros(len(boxes))
    return labels
