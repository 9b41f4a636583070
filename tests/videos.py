"""Videos for tests and benchmarks whose frames show their own number, and ways to spoil them.

The number is drawn as squares, one per bit, and once more with black and white exchanged. A picture
that a decoder patched up therefore shows no number rather than a wrong one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

BITS, SIDE, STEP, COLUMNS = 10, 16, 24, 5
HEIGHT, WIDTH = 112, 144
TURNS = {
    90: (0, 1, 0, -1, 0, 0, 0, 0, 1),
    180: (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    270: (0, -1, 0, 1, 0, 0, 0, 0, 1),
}
"""Display matrices of an mp4 by the degrees clockwise by which it is shown."""


def picture(number: int) -> np.ndarray:
    """The frame of this number: (HEIGHT, WIDTH, 3) uint8 BGR."""
    image = np.full((HEIGHT, WIDTH, 3), 96, np.uint8)
    image[..., 1] = np.linspace(60, 180, WIDTH)
    for bit, (y, x) in enumerate(_places()):
        image[y : y + SIDE, x : x + SIDE] = 255 * _is_white(number, bit)
    return image


def shown_number(image: np.ndarray) -> int | None:
    """The number in a frame; None if there is none."""
    if image.shape != (HEIGHT, WIDTH, 3):
        return None
    inner = [image[y + 4 : y + SIDE - 4, x + 4 : x + SIDE - 4].mean() for y, x in _places()]
    number = sum((inner[bit] > 128) << bit for bit in range(BITS))
    sure = all(abs(value - 255 * _is_white(number, bit)) < 64 for bit, value in enumerate(inner))
    return number if sure else None


def _places() -> list[tuple[int, int]]:
    return [
        (12 + place // COLUMNS * STEP, 12 + place % COLUMNS * STEP) for place in range(2 * BITS)
    ]


def _is_white(number: int, bit: int) -> bool:
    return bool(number >> bit % BITS & 1) != (bit >= BITS)


def write_by_opencv(path: Path, fourcc: str, frames: int = 30) -> Path:
    """A video with the codecs that OpenCV brings; 25 frames a second."""
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*fourcc), 25, (WIDTH, HEIGHT)
    )
    assert writer.isOpened(), f"OpenCV cannot write {fourcc} into {path.suffix}"
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path


def write_by_pyav(
    path: Path,
    codec: str,
    frames: int = 60,
    *,
    group: int = 12,
    times: Sequence[int] | None = None,
    container: Mapping[str, str] | None = None,
) -> Path:
    """A video with any codec of PyAV's.

    Args:
        path: the file.
        codec: an encoder of FFmpeg.
        frames: their number.
        group: the most frames from one key frame to the next.
        times: of each frame in ms; None: 25 frames a second.
        container: options of the container.
    """
    import av

    unit = Fraction(1, 1000 if times else 25)
    with av.open(str(path), "w", options=dict(container or {})) as file:
        stream = file.add_stream(codec, rate=25, options=dict(ENCODERS.get(codec, {})))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.time_base = group, unit
        if codec in REORDERED:
            stream.codec_context.max_b_frames = 2
        if codec != "libsvtav1":
            stream.bit_rate = 1_000_000
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number), "bgr24")
            frame.pts, frame.time_base = times[number] if times else number, unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


ENCODERS = {
    "libx264": {"preset": "veryfast"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "16"},
    "libsvtav1": {"preset": "10", "crf": "30"},
}
"""Options of encoders."""
REORDERED = ("libx264", "mpeg4")
"""Encoders that are told to store frames before others that are shown earlier."""


def uneven_times(frames: int) -> list[int]:
    """Times in ms of a variable frame rate."""
    steps = np.random.default_rng(0).choice((10, 33, 40, 100, 250), frames)
    return [0, *np.cumsum(steps).tolist()][:frames]


def turned(source: Path, target: Path, degrees: int) -> Path:
    """A copy of an mp4 that is shown turned clockwise by 90, 180 or 270 degrees."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # the matrix of a header of version 0
    whole = [1 << (30 if place % 3 == 2 else 16) for place in range(9)]
    values = [part * one for part, one in zip(TURNS[degrees], whole, strict=True)]
    data[start : start + 36] = struct.pack(">9i", *values)
    target.write_bytes(data)
    return target


def cut(source: Path, target: Path, share: float = 0.6, *, unit: int = 1) -> Path:
    """A copy with the first bytes only, a multiple of `unit`."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share) // unit * unit])
    return target


def zeroed(source: Path, target: Path, share: float = 0.1) -> Path:
    """A copy with zeros in its middle."""
    data = bytearray(source.read_bytes())
    length = int(len(data) * share)
    data[len(data) // 2 : len(data) // 2 + length] = bytes(length)
    target.write_bytes(data)
    return target


def noisy(source: Path, target: Path, seed: int = 0) -> Path:
    """A copy with 40 random bytes in the tenth after its middle."""
    data, random = bytearray(source.read_bytes()), np.random.default_rng(seed)
    for place in random.integers(len(data) // 2, len(data) * 6 // 10, 40):
        data[place] = random.integers(256)
    target.write_bytes(data)
    return target
