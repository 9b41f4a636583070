"""Labels of a split's images as ultralytics has them, made out of the index one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from yolods.data.index.block import digest_of
from yolods.data.index.table import Index

Label = dict[str, Any]


class Totals(NamedTuple):
    """Sums over the images of some labels."""

    boxes: int
    """Number of boxes."""
    most: int
    """Largest number of boxes of one image."""
    backgrounds: int
    """Number of images without a box."""


class Labels(Sequence[Label]):
    """A dictionary per image, made anew for each access, so that a caller may change it.

    Keys: im_file (its identity), shape (height, width), cls (n, 1) and bboxes (n, 4) float32
    (normalised centre x, centre y, width, height), segments (list of (k, 2) float32), and the
    constants that ultralytics expects.
    """

    def __init__(
        self,
        index: Index,
        rows: np.ndarray | range,
        *,
        single_cls: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            index: the split's index.
            rows: its rows that count, in the order of the labels.
            single_cls: make every class id 0.
            classes: keep only the boxes of these ids; None keeps all.
        """
        self.index, self.rows = index, rows
        self._single = single_cls
        self._classes = None if classes is None else np.array(sorted(classes))
        # ultralytics drops all polygons of a set in which some box has none; so does this.
        self._polygons = not index.counts.without_polygon

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Label:  # type: ignore[override]
        row = int(self.rows[place])
        start, end = self.index.boxes_of(row)
        box = self.index.columns["box"][start:end]
        segments = self.index.polygons_of(start, end) if self._polygons else []
        if self._classes is not None:
            keep = np.isin(box[:, 0], self._classes)
            box = box[keep]
            segments = [each for each, kept in zip(segments, keep, strict=False) if kept]
        return {
            "im_file": self.index.ids[row],
            "shape": self.shape(place),
            "cls": np.zeros((len(box), 1), np.float32) if self._single else box[:, :1].copy(),
            "bboxes": box[:, 1:].copy(),
            "segments": [each.copy() for each in segments],
            "keypoints": None,
            "normalized": True,
            "bbox_format": "xywh",
        }

    def shape(self, place: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        height, width = self.index.columns["shape"][int(self.rows[place])].tolist()
        return height, width

    def chosen(self, rows: np.ndarray | range) -> Labels:
        """The labels of other rows under the same settings."""
        return Labels(self.index, rows, single_cls=self._single, classes=self._classes)

    @property
    def totals(self) -> Totals:
        """Sums over all images."""
        known = self.index.counts
        if self._whole:
            return Totals(known.boxes, known.most_boxes, known.backgrounds)
        counts = self.counts
        return Totals(int(counts.sum()), int(counts.max(initial=0)), int((counts == 0).sum()))

    @property
    def shapes(self) -> np.ndarray:
        """(n, 2) int32 height and width of each image."""
        return self._of_rows(self.index.columns["shape"])

    @property
    def counts(self) -> np.ndarray:
        """(n,) int64 boxes of each image."""
        ends = self.index.columns["box_end"]
        if self._classes is not None:
            kept = np.isin(self.index.columns["box"][:, 0], self._classes)
            ends = np.concatenate([[0], np.cumsum(kept)])[ends]
        return self._of_rows(np.diff(ends, prepend=0))

    def chosen_as(self) -> str:
        """A text that is equal for labels of the same images and boxes of this index."""
        rows = np.asarray(self.rows)
        ends = f"{len(rows)} {rows[0]} {rows[-1]}" if len(rows) else ""
        return f"{ends} {self._single} {None if self._classes is None else self._classes.tolist()}"

    def digests(self) -> Iterator[bytes]:
        """16 bytes per image; see `digest_of`."""
        if not self._single and self._classes is None:
            yield from (each.tobytes() for each in self.index.columns["digest"][self.rows])
            return
        for row, label in zip(self.rows, self, strict=True):
            size = int(self.index.columns["stat"][row, 0])
            yield digest_of(size, label["shape"], np.hstack([label["cls"], label["bboxes"]]))

    @property
    def _whole(self) -> bool:
        """Whether every box of every kept image counts."""
        return len(self.rows) == self.index.counts.kept and self._classes is None

    def boxes(self) -> np.ndarray:
        """(m, 5) float32 of all images: class, centre x, centre y, width, height."""
        box, ends = self.index.columns["box"], self.index.columns["box_end"]
        chosen = np.zeros(self.index.counts.images, bool)
        chosen[np.asarray(self.rows)] = True
        keep = np.repeat(chosen, np.diff(ends, prepend=0))
        if self._classes is not None:
            keep &= np.isin(box[:, 0], self._classes)
        found = box[keep]
        if self._single:
            found[:, 0] = 0
        return found

    @property
    def has_polygons(self) -> bool:
        """Whether augmentation can use polygons."""
        return self._polygons and self.totals.boxes > 0

    def _of_rows(self, column: np.ndarray) -> np.ndarray:
        if isinstance(self.rows, range):
            return column[self.rows.start : self.rows.stop]
        return column[self.rows]


class Identities(Sequence[str]):
    """The identities of labels' images, each made when it is asked for."""

    def __init__(self, labels: Labels) -> None:
        self._ids, self._rows = labels.index.ids, labels.rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> str:  # type: ignore[override]
        return self._ids[int(self._rows[place])]
