"""Indexes for tests: of checks that a test makes up, and of image files without checking them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from yolods.data.images.listing import place_of
from yolods.data.index.block import block_of, place_number, stat_of, state_of
from yolods.data.index.freshness import CHANGE_COLUMNS
from yolods.data.index.labels import Labels
from yolods.data.index.table import Index, IndexWriter
from yolods.data.source import ImageFiles, identities
from yolods.data.verify import CheckedPair


def index_of(pairs: Sequence[CheckedPair]) -> Index:
    """An index of these checks, in a temporary folder; `file` of a pair may exist or not."""
    folder = Path(tempfile.mkdtemp()) / "index"
    stats = [(*stat_of(pair.file), -1, -1) for pair in pairs]
    places = [place_number(*place_of(pair.file)) for pair in pairs]
    with IndexWriter(folder, CHANGE_COLUMNS) as writer:
        if pairs:
            block = block_of(pairs, stats, places)
            block.further = {"changed": np.array([(state_of(pair.file)[2], -1) for pair in pairs])}
            writer.add(block)
    return Index(folder)


def image_files(
    files: Sequence[str],
    root: Path,
    channels: int = 3,
    boxes: Mapping[int, Sequence[float]] | None = None,
) -> ImageFiles:
    """Image files of 40x20 pixels with one box each: [class, x, y, width, height] by place."""
    ids, spelled = identities(files, root)
    usual = (0, 0.5, 0.5, 0.1, 0.1)
    pairs = [
        CheckedPair(
            file,
            (20, 40),
            np.array([(boxes or {}).get(place, usual)], np.float32),
            id=identity,
        )
        for place, (file, identity) in enumerate(zip(files, ids, strict=True))
    ]
    return ImageFiles(index_of(pairs), root, channels, spelled)


def labels_of(source: ImageFiles) -> Labels:
    """All labels of a source."""
    return Labels(source.index, source.index.kept_rows())


def boxes_of(*classes: Sequence[int]) -> Labels:
    """Labels of images that have one box of each of these classes, again for each image."""
    pairs = [
        CheckedPair(
            f"{place}.jpg",
            (20, 40),
            np.array([(each, 0.5, 0.5, 0.1, 0.1) for each in ids], np.float32).reshape(-1, 5),
            id=f"{place}.jpg",
        )
        for place, ids in enumerate(classes)
    ]
    index = index_of(pairs)
    return Labels(index, index.kept_rows())
