"""A picture of the nearest pairs between two splits, for a person to judge them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from yolods.data.leaks.search import Pair
from yolods.data.leaks.warning import Leak, SplitImages, leaks_of
from yolods.data.source import Unreadable
from yolods.system.files import replace_file
from yolods.system.humanize import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PAIRS = 12
"""Pairs on a sheet."""

_LONG_SIDE = 360
"""Pixels of a shown image's long side."""

_TINT = "#eeeeee"
"""Ground of a pair, which shows what belongs together."""

_LONGEST_NAME = 40
"""Characters of a name; the end, which tells images apart, is kept."""


def draw_sheet(pairs: Sequence[Pair], train: SplitImages, val: SplitImages, path: Path) -> None:
    """Draw up to `MOST_PAIRS` pairs, the nearest first; of the same two groups only the nearest.

    Nothing is written if there are no pairs. The parameters are those of `leaks_of`.

    Args:
        path: a .jpg or .png file, which is replaced; its folder exists.

    Raises:
        OSError: the file cannot be written.
    """
    if not pairs:
        return
    found = leaks_of(pairs, train, val)
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the log has the name in full.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = _figure(found[:MOST_PAIRS], train, val)
        figure.suptitle(_title(len(pairs), found, train, val), fontsize=11)
        suffix = path.suffix.lstrip(".")
        replace_file(path, lambda file: figure.savefig(file, format=suffix, dpi=100))


def _title(images: int, found: Sequence[Leak], train: SplitImages, val: SplitImages) -> str:
    total = plural(len(val.names), f"{val.split} image")
    text = f"{images} of {total} nearly repeat {train.split} images"
    if len(found) > MOST_PAIRS:
        kind = "pairs" if all(each.groups is None for each in found) else "pairs or groups"
        text += f"; the nearest {MOST_PAIRS} of {len(found)} {kind}"
    return text


def _figure(shown: Sequence[Leak], train: SplitImages, val: SplitImages) -> Figure:
    from matplotlib.figure import Figure

    columns = min(math.ceil(len(shown) / 4), 3)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(6.4 * columns, 2.9 * rows + 0.5), layout="constrained")
    cells = figure.subfigures(rows, columns, squeeze=False, wspace=0.02, hspace=0.02).ravel()
    for cell, leak in zip(cells, shown, strict=False):
        cell.set_facecolor(_TINT)
        _draw_pair(cell, leak, train, val)
    return figure


def _draw_pair(cell: Any, leak: Leak, train: SplitImages, val: SplitImages) -> None:
    pair = leak.nearest
    caption = f"{_short(leak.group)}: {leak.size}" if leak.group else leak.size
    cell.suptitle(caption, fontsize=9, fontweight="bold", parse_math=False)
    for axes, side, row in zip(
        cell.subplots(1, 2), (val, train), (pair.val, pair.train), strict=True
    ):
        axes.imshow(_picture(side, row))
        axes.set_title(f"{side.split}: {_short(side.names[row])}", fontsize=7, parse_math=False)
        axes.set_axis_off()


def _picture(side: SplitImages, row: int) -> np.ndarray:
    """The image in RGB, at most _LONG_SIDE on a side; grey with a cross if it cannot be read."""
    try:
        image = np.atleast_3d(side.read(row))
    except Unreadable:
        return _cross()
    image = image[..., :3][..., ::-1] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    factor = min(_LONG_SIDE / max(image.shape[:2]), 1)
    size = [max(round(length * factor), 1) for length in image.shape[1::-1]]
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)


def _cross() -> np.ndarray:
    image = np.full((_LONG_SIDE * 3 // 4, _LONG_SIDE, 3), 200, np.uint8)
    middle = (image.shape[1] // 2, image.shape[0] // 2)
    return cv2.drawMarker(image, middle, (90, 90, 90), cv2.MARKER_TILTED_CROSS, 60, 3)


def _short(name: str) -> str:
    # A file name may hold bytes that are no text, which matplotlib cannot draw.
    name = name.encode("utf-8", "backslashreplace").decode()
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
