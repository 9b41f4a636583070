"""The index of one split's images: shape, boxes, polygons, names and faults of each, by row.

Rows are in the order of the source, with images that were skipped; their shape is (0, 0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from yolods.data.index.block import Block
from yolods.data.index.columns import Columns, ColumnType, ColumnWriter, Texts
from yolods.data.verify import Problem

INDEX_COLUMNS = {
    "shape": ColumnType("<i4", 2),
    "box_end": ColumnType("<i8"),  # per image
    "box": ColumnType("<f4", 5),
    "line": ColumnType("<i4"),  # per box
    "point_end": ColumnType("<i8"),  # per box
    "point": ColumnType("<f4", 2),
    "stat": ColumnType("<i8", 4),
    "lines_skipped": ColumnType("<i4"),
    "digest": ColumnType("|u1", 16),
    "place": ColumnType("<u8"),
}
"""What the columns hold is described at `Block`; `x_end` is where an owner's rows of `x` end."""

COUNTS_FILE, SKIPPED_FILE = "index.json", "problems.jsonl"


@dataclass
class Counts:
    """What is known of an index without looking at its columns."""

    images: int = 0
    """Rows, with skipped images."""
    kept: int = 0
    """Images that can be used."""
    boxes: int = 0
    """Boxes of all kept images."""
    backgrounds: int = 0
    """Kept images without a box."""
    most_boxes: int = 0
    """Largest number of boxes of one kept image."""
    lines_skipped: int = 0
    """Skipped label lines of kept images."""
    without_polygon: int = 0
    """Boxes of kept images that have no polygon."""
    lowest_class: int = 0
    """Lowest class id; 0 if none is below."""
    highest_class: int = -1
    """Highest class id; -1 without a box."""
    problems: int = 0
    """Entries in the list of problems."""
    further: dict[str, Any] = field(default_factory=dict)
    """What the source's own writer noted."""

    def count(self, block: Block) -> None:
        """Add a block's images."""
        kept = block.shape[:, 0] > 0
        boxes = block.boxes[kept]
        self.images += len(kept)
        self.kept += int(kept.sum())
        self.boxes += int(boxes.sum())
        self.backgrounds += int((boxes == 0).sum())
        self.most_boxes = max(self.most_boxes, int(boxes.max(initial=0)))
        self.lines_skipped += int(block.lines_skipped[kept].sum())
        self.without_polygon += int((block.points == 0).sum())
        self.lowest_class = min(self.lowest_class, int(block.box[:, 0].min(initial=0)))
        self.highest_class = max(self.highest_class, int(block.box[:, 0].max(initial=-1)))
        self.problems += len(block.problems)


class IndexWriter:
    """Writes an index into a new folder, block by block. A context manager."""

    def __init__(self, folder: Path, further: Mapping[str, ColumnType] | None = None) -> None:
        """
        Args:
            folder: made here; its parent exists.
            further: columns that only this kind of source has, one row per image.
        """
        self._folder = folder
        self._columns = ColumnWriter(folder, {**INDEX_COLUMNS, **(further or {})}, ("id",))
        self._problems = open(folder / SKIPPED_FILE, "w", encoding="utf-8")  # noqa: SIM115
        self.counts = Counts()

    def add(self, block: Block) -> None:
        """Append some images."""
        columns, first = self._columns, self.counts.images
        columns.add("box_end", columns.rows("box") + np.cumsum(block.boxes))
        columns.add("point_end", columns.rows("point") + np.cumsum(block.points))
        for name in INDEX_COLUMNS.keys() - {"box_end", "point_end"}:
            columns.add(name, getattr(block, name))
        for name, rows in block.further.items():
            columns.add(name, rows)
        columns.add_texts("id", block.ids)
        for place, problem in block.problems:
            line = [first + place, problem.file, problem.line, problem.text]
            self._problems.write(json.dumps(line) + "\n")
        self.counts.count(block)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._problems.close()
        self._columns.__exit__(kind, error, trace)
        if error is None:
            # Last, because a folder without this file is not an index.
            text = json.dumps(asdict(self.counts))
            (self._folder / COUNTS_FILE).write_text(text, encoding="utf-8")


class Index:
    """The index in a folder. Opening it reads its counts and nothing else."""

    def __init__(self, folder: Path, notes: Path | None = None) -> None:
        """
        Args:
            folder: written by `IndexWriter`.
            notes: where results that are derived from the index may be kept; None: in `folder`.

        Raises:
            OSError, ValueError, TypeError: there is no complete index of this version.
        """
        self.counts = Counts(**json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8")))
        self.columns = Columns(folder)
        if missing := {*INDEX_COLUMNS, "id", "id_end"} - self.columns.names:
            raise ValueError(f"{folder}: without the columns {', '.join(sorted(missing))}")
        self.notes = notes or folder

    @property
    def ids(self) -> Texts:
        """Identity of each row."""
        return self.columns.texts("id")

    def kept_rows(self) -> np.ndarray | range:
        """The rows of kept images in their order; a range if nothing was skipped."""
        if self.counts.kept == self.counts.images:
            return range(self.counts.images)
        return np.flatnonzero(self.columns["shape"][:, 0])

    def boxes_of(self, row: int) -> tuple[int, int]:
        """First box of a row, and the end of its boxes."""
        ends = self.columns["box_end"]
        return (int(ends[row - 1]) if row else 0), int(ends[row])

    def polygons_of(self, start: int, end: int) -> list[np.ndarray]:
        """(k, 2) float32 for each box from `start` to `end`, read-only."""
        if start == end:
            return []
        ends, points = self.columns["point_end"], self.columns["point"]
        bounds = [int(ends[start - 1]) if start else 0, *ends[start:end].tolist()]
        return [points[a:b] for a, b in pairwise(bounds)]

    def problems(self) -> list[tuple[int, Problem]]:
        """(row, problem) of everything that was skipped, in the order of the rows."""
        text = (self.columns.folder / SKIPPED_FILE).read_text(encoding="utf-8")
        found = map(json.loads, text.splitlines())
        return [(row, Problem(file, line, what)) for row, file, line, what in found]
