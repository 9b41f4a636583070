"""The checks of one image and its label file."""

import math
import os
from dataclasses import dataclass, field

import numpy as np
from PIL import UnidentifiedImageError
from ultralytics.data.utils import exif_size

from yolods.compat import image_opener
from yolods.data.index.jpeg_header import plain_jpeg_shape

TOLERANCE = 0.01  # coordinates may pass 0 and 1 by this much, as in ultralytics
MIN_SIDE = 10  # pixels
SAME_OBJECT = 0.9
"""Minimum IoU of a box and a polygon of one object: rounding to pixels may reduce it to this."""


@dataclass(frozen=True)
class Problem:
    """One fault of a file."""

    file: str
    """Image or label file."""
    line: int | None
    """Line in a label file, from 1; None for the whole file."""
    text: str
    """What is wrong."""

    def __str__(self) -> str:
        return f"{self.file}:{'' if self.line is None else f'{self.line}:'} {self.text}"


@dataclass
class CheckedPair:
    """The result of checking an image and its label file."""

    file: str
    """Image file, or the image's name in messages."""
    shape: tuple[int, int] | None = None
    """(height, width) in pixels; None for a skipped image."""
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    """(n, 5) float32: class, normalised centre x, centre y, width, height."""
    segments: list[np.ndarray] = field(default_factory=list)
    """One (k, 2) float32 polygon for every row, or an empty list."""
    lines: list[int] = field(default_factory=list)
    """The line of the label file for each row, from 1."""
    label_file: str = ""
    """Label file, whether it exists or not; "" if the source has no label files."""
    problems: list[Problem] = field(default_factory=list)
    """What was skipped, and why."""
    lines_skipped: int = 0
    """Number of skipped label lines."""
    id: str = ""
    """Identity of the image in its source; see `source`."""


class _Bad(Exception):
    """The reason for which a label line or an image is skipped."""


def check_pair(image: str, label_file: str, keypoints: tuple[int, int] | None) -> CheckedPair:
    """Check an image and its label file; without a label file the image is a background.

    `keypoints` is (points, numbers per point) of pose labels, whose numbers after the box are
    ignored. Faults are returned, never raised.
    """
    found = CheckedPair(image, label_file=label_file)
    try:
        found.shape = _image_shape(image)
    except _Bad as reason:
        found.problems.append(Problem(image, None, f"{reason}; image skipped"))
        return found
    try:
        with open(label_file, "rb", 0) as stream:
            text = stream.read().decode("utf-8-sig")
    except FileNotFoundError:
        return found
    except (OSError, UnicodeDecodeError) as error:
        found.shape = None
        found.problems.append(
            Problem(label_file, None, f"label file cannot be read ({error}); image skipped")
        )
        return found
    read_rows(found, text, keypoints)
    return found


def _image_shape(file: str) -> tuple[int, int]:
    """(height, width) in pixels as the image will be loaded.

    Raises:
        _Bad: it is damaged, truncated or too small.
    """
    try:
        height, width = plain_jpeg_shape(file) or _opened_shape(file)
    except FileNotFoundError:
        raise _Bad("file does not exist") from None
    except UnidentifiedImageError:
        raise _Bad("damaged or not an image") from None
    except Exception as error:  # decoders raise SyntaxError, struct.error, OverflowError, ...
        raise _Bad(f"damaged or not an image ({type(error).__name__}: {error})") from error
    if min(height, width) < MIN_SIDE:
        raise _Bad(f"{width}x{height} pixels: less than {MIN_SIDE} on a side")
    return height, width


def _opened_shape(file: str) -> tuple[int, int]:
    """(height, width) of any image. Raises what decoders raise of a damaged one."""
    opened = image_opener(file)
    with opened(file) as image:
        kind = (image.format or "").lower()
        image.verify()
        width, height = exif_size(image)
    if not _ends_well(file, kind):
        with opened(file) as image:
            image.load()
    return height, width


def _ends_well(file: str, kind: str) -> bool:
    """Whether `verify` or the end of the file shows that the image is complete; else decode it
    fully.

    PNG's `verify` reads every chunk. A JPEG with an end marker at its end is complete; some
    complete ones lack it there because data follows.
    """
    if kind == "png":
        return True
    if kind != "jpeg":
        return False
    with open(file, "rb") as stream:
        stream.seek(-2, os.SEEK_END)
        return stream.read() == b"\xff\xd9"


def read_rows(found: CheckedPair, text: str, keypoints: tuple[int, int] | None) -> None:
    """Read the lines of a YOLO label text into `found`: rows, segments, lines and problems.

    `keypoints` is as in `check_pair`. Faults are noted in `found`, never raised.
    """
    rows: list[list[float]] = []
    polygons: list[np.ndarray | None] = []
    seen: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            row, segment = _parse(words, keypoints)
            identity = np.array(row, np.float32).tobytes() + (
                b"" if segment is None else segment.tobytes()
            )
            if (first := seen.setdefault(identity, number)) != number:
                raise _Bad(f"repeats line {first}")
        except _Bad as reason:
            found.problems.append(Problem(found.label_file, number, f"{reason}; line skipped"))
            found.lines_skipped += 1
            continue
        rows.append(row)
        polygons.append(segment)
        found.lines.append(number)
    found.rows = np.array(rows, np.float32).reshape(-1, 5)
    _leave_out_boxes_of_polygons(found, polygons)
    found.segments = [polygon for polygon in polygons if polygon is not None]
    if len(found.segments) != len(found.rows):
        found.segments = []  # augmentation needs polygons for all boxes or for none


def _leave_out_boxes_of_polygons(found: CheckedPair, polygons: list[np.ndarray | None]) -> None:
    """Remove boxes that duplicate a polygon of the same class; the polygon has more information.

    `polygons` has an entry for each row, None for a box; it is changed together with the rows.
    """
    boxes = [place for place, polygon in enumerate(polygons) if polygon is None]
    others = [place for place, polygon in enumerate(polygons) if polygon is not None]
    if not boxes or not others:
        return
    overlap = _overlap(found.rows[boxes, 1:], found.rows[others, 1:])
    overlap[found.rows[boxes, :1] != found.rows[others, 0]] = 0
    gone = []
    # The best pair first, and each box and polygon in one pair only, so that two objects which lie
    # on each other both remain.
    while overlap.max() >= SAME_OBJECT:
        box, polygon = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap[box], overlap[:, polygon] = 0, 0
        gone.append((boxes[box], others[polygon]))
    for box, polygon in sorted(gone):
        text = f"is the box of the polygon on line {found.lines[polygon]}; line skipped"
        found.problems.append(Problem(found.label_file, found.lines[box], text))
    found.lines_skipped += len(gone)
    for box in sorted((box for box, _ in gone), reverse=True):
        del polygons[box], found.lines[box]
    found.rows = np.delete(found.rows, [box for box, _ in gone], axis=0)


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) and (m, 4), given by centre and size."""
    low = np.maximum(
        (one[:, :2] - one[:, 2:] / 2)[:, None], (other[:, :2] - other[:, 2:] / 2)[None]
    )
    high = np.minimum(
        (one[:, :2] + one[:, 2:] / 2)[:, None], (other[:, :2] + other[:, 2:] / 2)[None]
    )
    shared = np.clip(high - low, 0, None).prod(-1)
    return shared / (one[:, 2:].prod(-1)[:, None] + other[:, 2:].prod(-1)[None] - shared)


def _parse(
    words: list[str], keypoints: tuple[int, int] | None
) -> tuple[list[float], np.ndarray | None]:
    """A line as [class, centre x, centre y, width, height], and its polygon (k, 2) or None."""
    values = [_number(word) for word in words]
    if keypoints and len(values) == 5 + keypoints[0] * keypoints[1]:
        values = values[:5]
    polygon = len(values) >= 7 and len(values) % 2 == 1
    if len(values) != 5 and not polygon:
        raise _Bad(
            f"{len(values)} numbers; a line is `class x y width height`, or a class and three or "
            "more x y pairs"
        )
    if values[0] % 1:
        raise _Bad(f"class id {values[0]:g} is not an integer")
    for value in values[1:]:
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            raise _Bad(
                f"coordinate {value:g} is outside [0, 1] (1% tolerance); labels are fractions of "
                "the image size"
            )
    segment = None
    if polygon:
        segment = np.array(values[1:], np.float32).reshape(-1, 2)
        (x1, y1), (x2, y2) = segment.min(0).tolist(), segment.max(0).tolist()
        values = [values[0], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    if values[3] <= 0 or values[4] <= 0:
        raise _Bad(f"width {values[3]:g} and height {values[4]:g}: both must be above 0")
    return values, segment


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise _Bad(f"{word[:40]!r} is not a number") from None
    if not math.isfinite(value):
        raise _Bad(f"{word[:40]!r} is not a finite number")
    return value
