"""Reads a video in order with OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from yolods.data.video.containers import broken_off
from yolods.data.video.packets import Packets
from yolods.errors import UserError

if TYPE_CHECKING:
    import cv2

OLDEST = (4, 12)
"""Versions before it end an mp4 in fragments after the frames that its header counts."""

MOST_UNREADABLE = 4096
"""Unreadable packets in a row after which a file has ended."""


class OpenCvReader:
    """The frames of one file; each call of `times` begins with the first."""

    name = "OpenCV"

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: OpenCV is too old to be trusted.
        """
        _refuse_old_versions()
        self._path = path
        self._capture: cv2.VideoCapture | None = None
        self.packets = _packets(path)
        """The packets of the file; none if OpenCV cannot open it."""

    def times(self) -> Iterator[float]:
        """The time of each decoded frame in seconds, in the order shown."""
        import cv2

        self._capture = _opened(self._path)
        grabbed = failed = 0
        while True:
            if self._capture.grab():
                grabbed += 1
                yield self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            elif grabbed + failed < len(self.packets.times):
                # A packet that cannot be decoded looks like the end, but later ones may decode.
                failed += 1
            else:
                return

    def image(self) -> np.ndarray | None:
        """The frame at the last time that `times` gave: (h, w, 3) uint8 BGR, rotated as shown.

        None: it cannot be converted.
        """
        return self._capture.retrieve()[1] if self._capture else None


def _refuse_old_versions() -> None:
    import cv2

    if tuple(int(part) for part in cv2.__version__.split(".")[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise UserError(
            f"OpenCV {cv2.__version__} ends some videos early; install {needed} or later "
            f"(pip install 'opencv-python>={needed}')"
        )


def _packets(path: Path) -> Packets:
    """Read the packets without decoding them."""
    import cv2

    capture = _opened(path, cv2.CAP_PROP_FORMAT, -1)
    times: list[float] = []
    unreadable: list[int] = []
    failed = 0
    while capture.isOpened() and failed < MOST_UNREADABLE:
        if not capture.grab():
            failed += 1
            continue
        unreadable += [len(times)] * failed
        failed = 0
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    declared = count / rate if rate > 0 and count > 0 else 0.0
    return Packets(np.array(times, float), declared, tuple(unreadable), broken_off(path))


def _opened(path: Path, *settings: int) -> cv2.VideoCapture:
    """The file, opened with pairs of a property and its value."""
    import cv2

    # Read when OpenCV first uses FFmpeg, which would otherwise print a line per damaged block.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with _quiet():
        return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, list(settings))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV from printing that a file cannot be opened; the caller reports it."""
    from cv2.utils import logging

    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
