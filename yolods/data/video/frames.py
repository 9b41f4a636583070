"""The frames of a video in the order shown, numbered from 0, or an error that says what is wrong.

Frames are only ever read in order from the first, because seeking finds other frames in some
containers. OpenCV reads; PyAV does what OpenCV cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolods.data.video.containers import lacks_index
from yolods.data.video.opencv import OpenCvReader
from yolods.data.video.packets import SAME_TIME, Missing, Packets, missing
from yolods.data.video.pyav import PyAvReader, pyav_installed
from yolods.data.video.spans import span_text
from yolods.errors import UserError
from yolods.system.humanize import plural

if TYPE_CHECKING:
    import numpy as np

    Reader = OpenCvReader | PyAvReader

INSTALL = "install PyAV, which may read it: pip install 'yolods[video]'"
REPAIR = (
    "encode it again (ffmpeg -i OLD -c:v libx264 NEW.mp4) and check its labels, or leave it out"
)


class VideoError(UserError):
    """A video whose frames cannot be read, or not be numbered with certainty."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame."""

    number: int
    """From 0, in the order shown."""
    image: np.ndarray
    """(h, w, 3) uint8, colours as BGR, rotated as the file says."""
    time: float | None
    """Seconds from the start of the video; None: the file does not say."""


class Video:
    """A video file, read in order.

    After `frames` has ended, `count` and `warnings` are complete.
    """

    def __init__(self, path: Path) -> None:
        """Read the packets and decode one frame.

        Raises:
            VideoError: no frame can be decoded.
        """
        self.path = path
        self.count = 0
        """Number of frames that were read, those included that a stride left out."""
        self.warnings: list[str] = []
        """Lines about what the file lacks; the frames that were read are right."""
        self._reader = _first_reader(path)

    @property
    def expected(self) -> int:
        """The most frames that there can be, and usually their number; known without decoding."""
        return self._reader.packets.certain

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Pauses in a video of constant rate, (start, end) in seconds; known without decoding.

        Frames were dropped while recording, or lost later; `frames` numbers those that there are.
        """
        return self._reader.packets.gaps

    def frames(self, stride: int = 1) -> Iterator[Frame]:
        """Frames 0, `stride`, 2 x `stride`, ...

        Raises:
            VideoError: frames between others cannot be decoded. It comes after all frames that
                can, of which those after a missing one had a wrong number: discard all.
        """
        self.count, self.warnings = 0, []
        times: list[float] = []
        for reader in self._usable():
            read: list[float] = []
            for number, time in enumerate(_certain_times(reader)):
                read.append(time)
                if number < len(times):
                    self._compare(number, time, times[number])
                elif number % stride == 0:
                    yield Frame(number, self._image(reader, number), time if time == time else None)
            gone = self._whole(reader.packets, read)
            times = max(times, read, key=len)
            self.count = len(times)
            if not gone.after:
                break
        self._warn(reader.packets, gone)

    def _usable(self) -> Iterator[Reader]:
        """The readers, the preferred one first."""
        yield self._reader
        if pyav_installed() and not isinstance(self._reader, PyAvReader):
            other = PyAvReader(self.path)
            if len(other.packets.times):
                yield other

    def _compare(self, number: int, time: float, known: float) -> None:
        """Refuse another reader's frame that is not the known one."""
        if not abs(time - known) <= SAME_TIME:
            raise VideoError(
                f"{self.path}: frame {number} is at {known:.3f} s for OpenCV, and at {time:.3f} s "
                f"for PyAV; {REPAIR}"
            )

    def _image(self, reader: Reader, number: int) -> np.ndarray:
        image = reader.image()
        if image is None:
            raise VideoError(
                f"{self.path}: frame {number} cannot be converted to an image; {REPAIR}"
            )
        return image

    def _whole(self, packets: Packets, times: list[float]) -> Missing:
        """What is missing before the first and after the last picture.

        Raises:
            VideoError: something is missing between.
        """
        gone = missing(packets, times)
        all_packets = len(packets.times) + len(packets.unreadable)
        if gone is None:
            raise VideoError(
                f"{self.path}: only {len(times)} of {all_packets} frames can be decoded, and their "
                f"times do not say which; {REPAIR}"
            )
        if lost := {*gone.between, *(place - gone.before for place in packets.unreadable)}:
            count = len(gone.between) + len(packets.unreadable)
            raise VideoError(
                f"{self.path}: damaged: {count} of {all_packets} frames cannot be decoded, near "
                f"frame {span_text(lost)}; {REPAIR}"
            )
        return gone

    def _warn(self, packets: Packets, gone: Missing) -> None:
        """Complete `warnings`."""
        end = f"{packets.shown[-1]:.1f} s"
        usable = f"{plural(self.count, 'frame')} can be used"
        if packets.cut:
            self._note(f"cut off after {end}; {usable}")
        elif packets.falls_short:
            self._note(
                f"ends after {end}, although its header declares {packets.declared:.1f} s: "
                f"damaged, trimmed, or with a longer sound; {usable}"
            )
        elif gone.before:
            self._note(
                f"begins with {plural(gone.before, 'packet')} without a picture; frame 0 is the "
                "first picture"
            )
        if gone.after:
            self._note(f"ends with {plural(gone.after, 'packet')} without a picture; {usable}")
        if gaps := packets.gaps:
            start, end = gaps[0]
            self._note(
                f"{plural(len(gaps), 'gap')} between frames, the first from {start:.2f} to "
                f"{end:.2f} s: frames were dropped while recording, or lost; frames are numbered "
                "without them"
            )

    def _note(self, text: str) -> None:
        self.warnings.append(f"{self.path}: {text}")


def _certain_times(reader: Reader) -> Iterator[float]:
    """The times of the frames whose number is certain even if the file was cut off."""
    packets, most = reader.packets, None
    for number, time in enumerate(reader.times()):
        if number == 0 and packets.cut:
            most = packets.certain - packets.before(time)
        if most is not None and number >= most:
            return
        yield time


def _first_reader(path: Path) -> Reader:
    """The preferred reader that decodes the file's first frame.

    Raises:
        VideoError: no reader does.
    """
    if not path.is_file():
        raise VideoError(f"{path}: does not exist")
    packets = 0
    for each in (OpenCvReader, PyAvReader) if pyav_installed() else (OpenCvReader,):
        reader = each(path)
        packets = max(packets, len(reader.packets.times))
        if len(reader.packets.times) and next(_certain_times(reader), None) is not None:
            return reader
    raise VideoError(f"{path}: {_why_not(path, packets)}")


def _why_not(path: Path, packets: int) -> str:
    """Why no frame of a file can be decoded, with the remedy."""
    names = "OpenCV and PyAV" if pyav_installed() else "OpenCV"
    remedy = REPAIR if pyav_installed() else INSTALL
    if not packets and lacks_index(path):
        return "cut off: an mp4 or mov file without its index (moov); copy or record it again"
    if not packets:
        return f"damaged or not a video: {names} cannot open it; {remedy}"
    return f"no frame of {packets} can be decoded by {names}; {remedy}"
