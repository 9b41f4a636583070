"""Whether the numbers of labels count frames from 0 or from 1."""

from __future__ import annotations

from collections.abc import Collection

from yolods.data.video.labels.label_files import LabelFiles, LabelLayout
from yolods.data.video.spans import span_text
from yolods.errors import UserError
from yolods.system.humanize import plural

DEFINED: dict[LabelLayout, int] = {"cvat": 0, "sequence": 1}
"""The first number of layouts that define it."""


def first_number(
    labels: LabelFiles, numbers: Collection[int], frames: int, base: int | None
) -> int:
    """The number that labels give to the first frame: 0 or 1.

    It is `base`, or the layout's own, or what the numbers prove: a label numbered 0 proves 0, and
    one with the number of frames proves 1.

    Args:
        labels: of the video, for the layout and for messages.
        numbers: of the labels; at least one.
        frames: number of frames of the video.
        base: what the data yaml says; None: nothing.

    Raises:
        UserError: the numbers prove nothing, contradict the base, or are past the last frame.
    """
    first = DEFINED.get(labels.layout) if base is None else base
    if first is None:
        first = _proven(labels, numbers, frames)
    if min(numbers) < first:
        said = "`base: 1`" if base == 1 else "a MOT or VisDrone text"
        raise UserError(
            f"{labels.place}: has a label of frame {min(numbers)}, but {said} counts from 1; write "
            "`base: 0` if it counts from 0"
        )
    past = [number for number in numbers if number - first >= frames]
    if past:
        raise UserError(
            f"{labels.place}: labels frame {span_text(past)}, but {labels.video} has "
            f"{plural(frames, 'frame')} ({first} to {frames - 1 + first}); remove these labels if "
            "the others are right"
        )
    return first


def _proven(labels: LabelFiles, numbers: Collection[int], frames: int) -> int:
    if 0 in numbers:
        return 0
    if max(numbers) < frames:
        raise UserError(
            f"{labels.place}: the labels are numbered {min(numbers)} to {max(numbers)}, and "
            f"{labels.video} has {plural(frames, 'frame')}: they may count from 0 or from 1; write "
            "`base: 0` or `base: 1` into the data yaml"
        )
    return 1
