"""Reads MOT and VisDrone texts: the boxes of all frames of a sequence in one file.

A line is `frame,id,x,y,width,height,confidence,class`, in pixels from the top left corner; what
follows (visibility, truncation, occlusion) is not used. Both formats count classes from 1. Lines
with a confidence of 0 are ignored regions and objects that do not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from yolods.data.verify import Problem
from yolods.errors import UserError
from yolods.system.humanize import plural

NEEDED = 8
"""Values of a line that are read."""


@dataclass(frozen=True)
class SequenceBox:
    """One line."""

    line: int
    """From 1."""
    frame: int
    """As written."""
    xywh: tuple[float, float, float, float]
    """Left, top, width and height in pixels."""
    id_of_class: int
    """From 0."""


@dataclass
class SequenceText:
    """A text that was read."""

    boxes: list[SequenceBox] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    """Skipped lines, and how many were left out for their confidence."""
    lines_skipped: int = 0


class _Skipped(Exception):
    """The reason for which a line is skipped."""


def read_sequence(path: Path, *, first_class: int = 1) -> SequenceText:
    """Read a text; lines that cannot be read are skipped and listed.

    Args:
        path: the text.
        first_class: the number in the text of the class with id 0.

    Raises:
        UserError: the file cannot be read, is no such text, or has a class below `first_class`.
    """
    found, left_out, below = SequenceText(), 0, []
    for number, line in enumerate(_lines_of(path), 1):
        if not line.strip():
            continue
        try:
            box, confidence = _parsed(number, line, first_class)
        except _Skipped as reason:
            found.problems.append(Problem(str(path), number, f"{reason}; line skipped"))
            found.lines_skipped += 1
            continue
        if confidence == 0:
            left_out += 1
        elif box.id_of_class < 0:
            below.append(box)
        else:
            found.boxes.append(box)
    if below:
        remedy = ", or write `first_class: 0` into the data yaml" if first_class == 1 else ""
        raise UserError(
            f"{path}:{below[0].line}: class {below[0].id_of_class + first_class}, in all "
            f"{plural(len(below), 'line')} with a class below {first_class}, from which the "
            f"classes are counted; correct them{remedy}"
        )
    if left_out:
        text = f"{plural(left_out, 'line')} with confidence 0 left out"
        found.problems.append(Problem(str(path), None, text))
    return found


def normalised(box: SequenceBox, shape: tuple[int, int]) -> list[float] | None:
    """A box as [class, centre x, centre y, width, height] of its part inside the image.

    `shape` is (height, width) in pixels. None: it is outside the image. Boxes of these formats
    may reach over the border.
    """
    height, width = shape
    x, y, w, h = box.xywh
    left, right = max(x, 0.0) / width, min(x + w, width) / width
    top, bottom = max(y, 0.0) / height, min(y + h, height) / height
    if left >= right or top >= bottom:
        return None
    return [
        box.id_of_class,
        (left + right) / 2,
        (top + bottom) / 2,
        right - left,
        bottom - top,
    ]


def _lines_of(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    first = next((line for line in lines if line.strip()), "")
    if "," not in first:
        raise UserError(
            f"{path}: not a MOT or VisDrone text: expected lines such as 1,1,10,20,30,40,1,1,1, "
            f"found {first[:40]!r}; texts of single frames are named {path.stem}_000001.txt"
        )
    return lines


def _parsed(number: int, line: str, first_class: int) -> tuple[SequenceBox, float]:
    """A line's box and confidence."""
    words = line.strip().rstrip(",").split(",")
    if len(words) < NEEDED:
        raise _Skipped(f"{len(words)} values; a line is frame,id,x,y,width,height,confidence,class")
    values = [_value(word) for word in words[:NEEDED]]
    frame, _, x, y, w, h, confidence, category = values
    if frame % 1 or frame < 0:
        raise _Skipped(f"frame {frame:g} is not the number of a frame")
    if category % 1:
        raise _Skipped(f"class {category:g} is not an integer")
    if confidence and (w <= 0 or h <= 0):
        raise _Skipped(f"width {w:g} and height {h:g}: both must be above 0")
    return SequenceBox(number, int(frame), (x, y, w, h), int(category) - first_class), confidence


def _value(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise _Skipped(f"{word.strip()[:40]!r} is not a number") from None
    if not math.isfinite(value):
        raise _Skipped(f"{word.strip()[:40]!r} is not a finite number")
    return value
