"""Difference hashes of images: 256 bits that resizing, compression and brightness barely change."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import cv2
import numpy as np

from yolods.data.images.threads import one_opencv_thread
from yolods.data.source import Unreadable
from yolods.system.bar import counting_bar
from yolods.system.humanize import plural
from yolods.system.workers import in_workers

HASH_BITS = 256
"""Bits of a hash: 16 rows of 8 differences to the right, and 8 rows of 16 differences downwards."""

THUMBNAIL = 144
"""Side in pixels of the grey thumbnail: the smallest that 9 and 16 cells divide. The mean of a
cell's 144 pixels has no rounding to whole grey levels, so cells are rarely equal."""

GREY_LEVELS = 2
"""Difference of two cells, of 255, above which noise and compression do not decide its sign."""

FEWEST_SLOPES = 32
"""An image has to rise in this many differences by `GREY_LEVELS`, and to fall in as many. Plainer
images resemble each other whatever they show: one black image another, one sky another, and a part
on a white table any other (benchmarks/leaks.md has the numbers). BCCD's plainest image has 66 of
the rarer kind, the demo's 67."""

PLAIN = np.zeros(4, np.uint64)
"""The hash of an image that is too plain to compare; no other image has it."""

_FEW = 256
"""Up to this many images take about a second without processes."""

_CHUNK = 16
"""Images that a process hashes between two messages."""

Row = TypeVar("Row")

_Found = np.ndarray | None
"""A hash, (4,) uint64; None for an unreadable image."""


@dataclass(frozen=True)
class Hashes:
    """The hashes of a split's images."""

    values: np.ndarray
    """(n, 4) uint64, one row per image in their order; `PLAIN` if it is not compared."""
    unreadable: int
    """Number of images that could not be read."""

    @property
    def plain(self) -> int:
        """Number of images that are too plain to compare."""
        return int((self.values == PLAIN).all(1).sum()) - self.unreadable

    def left_out(self, split: str) -> str:
        """The line about images that are not compared; "" if all are."""
        reasons = {"unreadable": self.unreadable, "too plain to tell apart": self.plain}
        named = [f"{count} {reason}" for reason, count in reasons.items() if count]
        images = plural(self.unreadable + self.plain, "image")
        return f"{split}: {images} not compared for leaks: {', '.join(named)}" if named else ""


def dhash(image: np.ndarray) -> np.ndarray:
    """The difference hash of an image: in which of its `cell_rises` grey rises.

    Args:
        image: (h, w, channels) or (h, w) uint8; three channels are BGR.

    Returns:
        (4,) uint64; `PLAIN` if the image has fewer than `FEWEST_SLOPES` `slopes`.
    """
    rises = cell_rises(image)
    return bits_of(rises) if slopes(rises) >= FEWEST_SLOPES else PLAIN.copy()


def cell_rises(image: np.ndarray) -> np.ndarray:
    """By how many grey levels each cell of a grid is brighter than the one before it.

    Rises to the right are taken on a grid of 16 rows and 9 columns, rises downwards on one of 9
    rows and 16 columns.

    Args:
        image: as for `dhash`.

    Returns:
        (HASH_BITS,) float32, those to the right first.
    """
    grey = _grey_thumbnail(image)
    wide = cv2.resize(grey, (9, 16), interpolation=cv2.INTER_AREA)
    high = cv2.resize(grey, (16, 9), interpolation=cv2.INTER_AREA)
    return np.concatenate((np.diff(wide, axis=1).ravel(), np.diff(high, axis=0).ravel()))


def bits_of(rises: np.ndarray) -> np.ndarray:
    """(4,) uint64 whose bits say which of `cell_rises` are above 0."""
    return np.packbits(rises > 0).view(np.uint64)


def slopes(rises: np.ndarray) -> int:
    """The smaller number of rises above `GREY_LEVELS` and of falls below its negative."""
    clear = ((rises > GREY_LEVELS).sum(), (rises < -GREY_LEVELS).sum())
    return int(min(clear))


def hash_images(
    read: Callable[[Row], np.ndarray],
    rows: Sequence[Row],
    *,
    workers: int = 8,
    progress: str = "",
) -> Hashes:
    """Hash images, in processes if there are more than `_FEW`. An unreadable one is counted.

    Args:
        read: returns the decoded image of a row, as `Source.read`; raises `Unreadable`. Processes
            are forked with it, so it may be any callable.
        rows: what `read` takes, one per image, such as the identities of a source.
        workers: number of processes; at most one per core is started.
        progress: text of a progress bar; "" shows none.

    Raises:
        UserError: a process died.
    """
    values, unreadable = np.zeros((len(rows), 4), np.uint64), 0
    workers = min(workers, len(os.sched_getaffinity(0))) if len(rows) > _FEW else 1
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    found = in_workers(partial(_hashes, read), chunks, workers, doing="hashes images")
    # Closed also after Ctrl-C, so that no process stays.
    bar = counting_bar(progress, len(rows), "images", shown=bool(progress))
    with one_opencv_thread(), closing(found), bar:
        for row, value in enumerate(itertools.chain.from_iterable(found)):
            bar.update()
            if value is None:
                unreadable += 1
            else:
                values[row] = value
    return Hashes(values, unreadable)


def _hashes(read: Callable[[Row], np.ndarray], rows: Sequence[Row]) -> list[_Found]:
    return [_hash(read, row) for row in rows]


def _hash(read: Callable[[Row], np.ndarray], row: Row) -> _Found:
    try:
        return dhash(read(row))
    except Unreadable:
        return None


def _grey_thumbnail(image: np.ndarray) -> np.ndarray:
    """(THUMBNAIL, THUMBNAIL) float32."""
    if image.ndim == 3 and image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    elif image.ndim == 3 and image.shape[2] > 1:  # OpenCV resizes at most four channels
        image = image.mean(axis=2, dtype=np.float32)
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)
