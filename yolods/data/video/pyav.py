"""Reads a video in order with PyAV, which brings decoders that OpenCV lacks, such as AV1's."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolods.data.video.containers import broken_off
from yolods.data.video.packets import Packets

if TYPE_CHECKING:
    import av

RIGHT_ANGLE = 90


def pyav_installed() -> bool:
    """Whether PyAV, an optional dependency, is installed."""
    return importlib.util.find_spec("av") is not None


class PyAvReader:
    """The frames of one file; each call of `times` begins with the first."""

    name = "PyAV"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frame: av.VideoFrame | None = None
        self.packets = _packets_of(path)
        """The packets of the file; none if PyAV cannot open it."""

    def times(self) -> Iterator[float]:
        """The time of each decoded frame in seconds, in the order shown; NaN: unknown."""
        import av

        with av.open(str(self._path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for packet in _demuxed(container, stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:  # the comparison with the packets finds what is missing
                    continue
                for frame in frames:
                    self._frame = frame
                    yield _seconds(frame.pts, stream)

    def image(self) -> np.ndarray | None:
        """The frame at the last time that `times` gave: (h, w, 3) uint8 BGR, rotated as shown.

        None: there is none.
        """
        if self._frame is None:
            return None
        image = self._frame.to_ndarray(format="bgr24")
        turns, rest = divmod(round(self._frame.rotation), RIGHT_ANGLE)
        # Like OpenCV, by right angles only.
        return np.ascontiguousarray(np.rot90(image, turns)) if turns and not rest else image


def _packets_of(path: Path) -> Packets:
    """Read the packets without decoding them."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            kept = [
                each for each in _demuxed(container, stream) if each.size and not each.is_discard
            ]
            times = [_seconds(each.pts, stream) for each in kept]
            declared = _declared(container, stream)
        return Packets(np.array(times, float), declared, broken_off=broken_off(path))
    except (av.FFmpegError, IndexError):  # not a video, or one without pictures
        return Packets(np.empty(0))


def _demuxed(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets up to the end, or to where the container cannot be read on."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        yield packet


def _seconds(time: int | None, stream: Any) -> float:
    if time is None:
        return float("nan")
    return float((time - (stream.start_time or 0)) * stream.time_base)


def _declared(container: Any, stream: Any) -> float:
    """The seconds that the header declares; 0: unknown."""
    import av

    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base
