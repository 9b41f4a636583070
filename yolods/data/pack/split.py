"""Packs a checked split: its images are encoded in several processes and written in their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ultralytics.data.utils import img2label_paths

from yolods.data.images.threads import one_opencv_thread
from yolods.data.index.block import stat_of
from yolods.data.index.checks import FilePair, checked_row, problems_by_row
from yolods.data.index.table import Index
from yolods.data.pack.bitmap import bitmap_size
from yolods.data.pack.encode import Encoding
from yolods.data.pack.manifest import PackRecord
from yolods.data.pack.sample import ALONE_IN_GROUP, Sample, StoredSample, store
from yolods.data.pack.shard import ROOM
from yolods.data.pack.writer import PackWriter
from yolods.data.scan import Scan
from yolods.data.source import ImageFiles, Unreadable
from yolods.data.verify import Problem
from yolods.errors import UserError
from yolods.system.humanize import plural
from yolods.system.workers import in_workers

IMAGES_AT_ONCE = 4
"""Images per message of a process: some megabytes if they are not compressed."""
FEW = 64
"""Up to so many images, this process encodes them itself."""
MEASURED = 24
"""JPEGs that are made to estimate the length of all."""
ROW_BYTES = 300
"""Bytes of an index per image, about."""
FIXED_BYTES = 1 << 15
"""Bytes of a pack beside its samples, about."""


class Packable(Protocol):
    """A checked split that can be packed."""

    further: Mapping[str, Any]
    """What `PackWriter` takes under this name."""
    problems: Sequence[Problem]
    """What was skipped."""

    def __len__(self) -> int:
        """Number of images that are packed."""

    @property
    def left_out(self) -> str:
        """What was skipped, in a line of the report; "" if nothing was."""

    def estimated_bytes(self) -> int:
        """Bytes that the pack takes, about; a little more rather than less."""

    def pack(self, writer: PackWriter, workers: int, seen: Callable[[int], Any]) -> PackRecord:
        """Pack all images.

        Args:
            writer: a new writer, entered as a context.
            workers: processes or threads that encode.
            seen: is called with numbers of images that are done.

        Raises:
            UserError: a file has changed since it was checked or packed.
            OSError: the disk is full.
        """


@dataclass(frozen=True)
class SplitSamples:
    """A `Packable` of a split that has an index: image files, or another pack."""

    scan: Scan
    encoding: Encoding
    channels: int
    by_row: Mapping[int, list[Problem]]
    """What was skipped of kept images, by row."""
    further: Mapping[str, Any] = field(default_factory=dict)
    """See `Packable`."""

    @classmethod
    def of(cls, scan: Scan, encoding: Encoding, channels: int) -> SplitSamples:
        """All samples of a split."""
        index = scan.index
        return cls(
            scan, encoding, channels, problems_by_row(index) if index.counts.problems else {}
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> np.ndarray | range:
        """Rows of the images that are packed."""
        return self.scan.index.kept_rows()

    @property
    def problems(self) -> Sequence[Problem]:
        """See `Packable`."""
        return self.scan.problems

    @property
    def left_out(self) -> str:
        """See `Packable`."""
        images, lines = self.scan.images_skipped, self.scan.lines_skipped
        told = [
            f"{plural(images, 'faulty image')} left out" if images else "",
            f"{plural(lines, 'label line')} skipped" if lines else "",
        ]
        return "; ".join(filter(None, told))

    def estimated_bytes(self) -> int:
        """See `Packable`."""
        rows, columns = np.asarray(self.rows), self.scan.index.columns
        stat, shapes = columns["stat"][rows], columns["shape"][rows].astype(np.int64)
        labels = np.maximum(stat[:, 2], 0).sum()
        images = _image_bytes(self, rows, stat[:, 0], shapes)
        return int(images + labels + len(rows) * (ROOM + ROW_BYTES) + FIXED_BYTES)

    def pack(self, writer: PackWriter, workers: int, seen: Callable[[int], Any]) -> PackRecord:
        """See `Packable`."""
        rows = self.rows
        done = _done(writer, self.scan.index, rows)
        seen(done)
        left = [
            rows[start : start + IMAGES_AT_ONCE] for start in range(done, len(rows), IMAGES_AT_ONCE)
        ]
        alone = len(rows) - done <= FEW
        found = in_workers(self.stored, left, 1 if alone else workers, doing="encodes images")
        with one_opencv_thread(), closing(found):
            for part in found:
                for stored in part:
                    writer.add(stored)
                seen(len(part))
        return writer.finish()

    def stored(self, rows: Sequence[int]) -> list[StoredSample]:
        """Read and encode images.

        Raises:
            UserError: a file has changed since it was checked, or cannot be read.
        """
        return [store(self._sample(int(row)), self.encoding, self.channels) for row in rows]

    def _sample(self, row: int) -> Sample:
        source, index = self.scan.source, self.scan.index
        identity = index.ids[row]
        file = source.place(identity)
        if isinstance(source, ImageFiles):
            pair = FilePair(identity, file, img2label_paths([file])[0])
            data, label = _read(pair, index, row)
        else:
            pair, label = FilePair(identity, file, ""), None
            try:
                data = source.read(row)
            except Unreadable as error:
                raise UserError(f"{error}: cannot be read") from None
        check = checked_row(index, row, pair, self.by_row.get(row, []))
        stat = index.columns["stat"][row].tolist()
        group = int(index.columns["group"][row]) if "group" in index.columns.names else None
        return Sample(
            check,
            data,
            (stat[0], stat[1], stat[2], stat[3]),
            label,
            ALONE_IN_GROUP if group is None else group,
        )


def _image_bytes(
    samples: SplitSamples, rows: np.ndarray, sizes: np.ndarray, shapes: np.ndarray
) -> int:
    encoding = samples.encoding
    if encoding.imgsz is None:
        return int(sizes.sum())
    shares = np.minimum(encoding.imgsz / shapes.max(axis=1), 1)
    sides = np.ceil(shapes * shares[:, None]).astype(np.int64)
    if encoding.uncompressed:
        return sum(bitmap_size(h, w, samples.channels) for h, w in sides.tolist())
    pixels = sides.prod(axis=1)
    chosen = np.linspace(0, len(rows) - 1, min(MEASURED, len(rows))).astype(int)
    made = sum(len(each.image.data) for each in samples.stored(rows[chosen]))
    return int(made * pixels.sum() / pixels[chosen].sum())


def _done(writer: PackWriter, index: Index, rows: np.ndarray | range) -> int:
    """How many samples are in finished tar files; all of them are compared."""
    stat, digest = index.columns["stat"], index.columns["digest"]
    for place, row in enumerate(rows):
        if not writer.has(index.ids[row], stat[row].tolist(), digest[row].tobytes()):
            return place
    return len(rows)


def _read(pair: FilePair, index: Index, row: int) -> tuple[bytes, bytes | None]:
    """The bytes of an image and of its label file, or None for one that does not exist."""
    label = None
    try:
        data = Path(pair.image).read_bytes()
        if os.path.exists(pair.label):
            label = Path(pair.label).read_bytes()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    # After reading: what was read is then as it was when it was checked.
    now = [*stat_of(pair.image), *stat_of(pair.label)]
    if now != index.columns["stat"][row].tolist():
        raise UserError(f"{pair.image}, or its label file, was changed while it was packed")
    return data, label
