"""Reads the labels of a video's frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yolods.data.verify import CheckedPair, Problem, read_rows
from yolods.data.video.labels.label_files import LabelFiles
from yolods.data.video.labels.numbering import first_number
from yolods.data.video.labels.sequence_text import SequenceBox, normalised, read_sequence
from yolods.data.video.spans import span_text
from yolods.errors import UserError


@dataclass
class VideoLabels:
    """The labels of a video."""

    pairs: dict[int, CheckedPair] = field(default_factory=dict)
    """For each labelled frame, by its number from 0, its boxes; `shape` is None if it is skipped.

    A frame without boxes is a background.
    """
    problems: list[Problem] = field(default_factory=list)
    """Problems of the whole video; those of a frame are in its pair."""


def read_labels(
    labels: LabelFiles,
    frames: int,
    shape: tuple[int, int],
    *,
    base: int | None = None,
    first_class: int = 1,
    keypoints: tuple[int, int] | None = None,
) -> VideoLabels:
    """Read the labels of all frames.

    A frame without a text of its own is not labelled and has no pair. A sequence's text labels
    every frame.

    Args:
        labels: the label files.
        frames: number of decoded frames.
        shape: (height, width) of the decoded frames in pixels.
        base: the number of the first frame, 0 or 1; None: see `first_number`.
        first_class: the number of the first class in a sequence's text.
        keypoints: as in `check_pair`.

    Raises:
        UserError: see `first_number` and `read_sequence`.
    """
    if labels.layout == "sequence":
        return _of_sequence(labels, frames, shape, base, first_class)
    first = first_number(labels, labels.files, frames, base)
    found = VideoLabels()
    for number, text in sorted(labels.files.items()):
        found.pairs[number - first] = _of_frame(labels, number - first, text, shape, keypoints)
    absent = [number for number in range(frames) if number not in found.pairs]
    if absent:
        reason = (
            f"{len(absent)} of {frames} frames have no label file and are left out (frame "
            f"{span_text(number + first for number in absent)}); an empty file marks a background"
        )
        found.problems.append(Problem(str(labels.place), None, reason))
    return found


def _pair(labels: LabelFiles, frame: int, shape: tuple[int, int], text: Path) -> CheckedPair:
    return CheckedPair(f"{labels.video} frame {frame}", shape, label_file=str(text))


def _of_frame(
    labels: LabelFiles,
    frame: int,
    file: Path,
    shape: tuple[int, int],
    keypoints: tuple[int, int] | None,
) -> CheckedPair:
    pair = _pair(labels, frame, shape, file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        pair.shape = None
        reason = f"label file cannot be read ({error}); frame skipped"
        pair.problems.append(Problem(str(file), None, reason))
        return pair
    read_rows(pair, text, keypoints)
    return pair


def _of_sequence(
    labels: LabelFiles, frames: int, shape: tuple[int, int], base: int | None, first_class: int
) -> VideoLabels:
    text = read_sequence(labels.place, first_class=first_class)
    if not text.boxes:
        raise UserError(f"{labels.place}: has no box for {labels.video}")
    first = first_number(labels, {box.frame for box in text.boxes}, frames, base)
    pairs = {number: _pair(labels, number, shape, labels.place) for number in range(frames)}
    rows: dict[int, list[list[float]]] = {number: [] for number in pairs}
    seen: dict[tuple, int] = {}
    for box in text.boxes:
        pair = pairs[box.frame - first]
        row, reason = _row(box, shape, seen)
        if row is None:
            pair.problems.append(Problem(pair.label_file, box.line, f"{reason}; line skipped"))
            pair.lines_skipped += 1
            continue
        rows[box.frame - first].append(row)
        pair.lines.append(box.line)
    for number, pair in pairs.items():
        pair.rows = np.array(rows[number], np.float32).reshape(-1, 5)
    return VideoLabels(pairs, text.problems)


def _row(
    box: SequenceBox, shape: tuple[int, int], seen: dict[tuple, int]
) -> tuple[list[float] | None, str]:
    """The box as a row of labels; or None, and the reason."""
    line = seen.setdefault((box.frame, box.xywh, box.id_of_class), box.line)
    if line != box.line:
        return None, f"repeats line {line}"
    return normalised(box, shape), "the box is outside the image"
