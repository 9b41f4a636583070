"""Checks many images and label files in several processes, for an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from yolods.data.images.listing import place_of
from yolods.data.index.block import Block, block_of, place_number, state_of
from yolods.data.index.freshness import CHANGE_COLUMNS
from yolods.data.index.table import Index
from yolods.data.verify import CheckedPair, Problem, check_pair
from yolods.system.workers import in_workers

CHUNK = 256
"""Images per message of a process: few messages, and a bar that moves."""
ALONE = 4 * CHUNK
"""Up to so many images, this process checks them itself: starting others would take longer."""


@dataclass(frozen=True)
class FilePair:
    """An image file and its label file."""

    id: str
    """Identity in the source."""
    image: str
    """Image file."""
    label: str
    """Label file, whether it exists or not."""


@dataclass
class Earlier:
    """The last check of a split, whose results stand for files that have not changed."""

    index: Index
    every: bool = False
    """Whether a file's last change counts as well as its size and time."""
    rows: Mapping[str, int] = field(init=False)
    """Row by identity."""
    problems: Mapping[int, list[Problem]] = field(init=False)
    """What was skipped, by row."""

    def __post_init__(self) -> None:
        self.rows = {identity: row for row, identity in enumerate(self.index.ids)}
        self.problems = problems_by_row(self.index)

    def checked(
        self, pair: FilePair, stat: Sequence[int], changed: Sequence[int]
    ) -> CheckedPair | None:
        """The result for a pair of files whose sizes and times are still `stat`, and whose last
        changes were `changed`."""
        row, columns = self.rows.get(pair.id), self.index.columns
        if row is None or columns["stat"][row].tolist() != list(stat):
            return None
        if self.every and columns["changed"][row].tolist() != list(changed):
            return None
        return checked_row(self.index, row, pair, self.problems.get(row, []))


def problems_by_row(index: Index) -> dict[int, list[Problem]]:
    """What was skipped, by row; rows without a problem are absent."""
    found: dict[int, list[Problem]] = {}
    for row, problem in index.problems():
        found.setdefault(row, []).append(problem)
    return found


def checked_row(index: Index, row: int, pair: FilePair, problems: list[Problem]) -> CheckedPair:
    """The result of a check that an index has.

    Args:
        index: the index; boxes and polygons are views of it.
        row: the image's row.
        pair: the image's files.
        problems: what was skipped of it.
    """
    start, end = index.boxes_of(row)
    height, width = index.columns["shape"][row].tolist()
    polygons = index.polygons_of(start, end)
    return CheckedPair(
        pair.image,
        (height, width) if height else None,
        index.columns["box"][start:end],
        polygons if all(map(len, polygons)) else [],
        index.columns["line"][start:end].tolist(),
        pair.label,
        problems,
        int(index.columns["lines_skipped"][row]),
        pair.id,
    )


def check_pairs(
    pairs: Sequence[FilePair],
    keypoints: tuple[int, int] | None,
    earlier: Earlier | None,
    workers: int,
    seen: Callable[[int], Any],
) -> Iterator[Block]:
    """Check files and return blocks of results in their order.

    Args:
        pairs: the files.
        keypoints: as for `check_pair`.
        earlier: an earlier check, whose results are used for unchanged files.
        workers: number of processes; with one, or few files, this process does the work.
        seen: is called with the number of images of each block.
    """
    chunks = [range(start, min(start + CHUNK, len(pairs))) for start in range(0, len(pairs), CHUNK)]
    check = partial(_check, pairs=pairs, keypoints=keypoints, earlier=earlier)
    blocks = in_workers(check, chunks, 1 if len(pairs) <= ALONE else workers, doing="checks files")
    with closing(blocks):
        for block in blocks:
            seen(len(block.ids))
            yield block


def scan_workers(local_ranks: int) -> int:
    """Processes for a check: the cores that this process and the other ranks of its host may use.

    A rank is bound to its share of the cores, but the others wait while one checks files.
    """
    return min(len(os.sched_getaffinity(0)) * max(local_ranks, 1), os.cpu_count() or 1, 32)


def _check(
    chunk: range,
    *,
    pairs: Sequence[FilePair],
    keypoints: tuple[int, int] | None,
    earlier: Earlier | None,
) -> Block:
    found, stats, changes = [], [], []
    for pair in (pairs[place] for place in chunk):
        # Before the files are read: a file that changes meanwhile is checked again next time.
        image, label = state_of(pair.image), state_of(pair.label)
        stat, changed = (*image[:2], *label[:2]), (image[2], label[2])
        item = earlier.checked(pair, stat, changed) if earlier else None
        item = item or check_pair(pair.image, pair.label, keypoints)
        item.id = pair.id
        found.append(item)
        stats.append(stat)
        changes.append(changed)
    places = [place_number(*place_of(pairs[place].image)) for place in chunk]
    block = block_of(found, stats, places)
    block.further = {"changed": np.array(changes, CHANGE_COLUMNS["changed"].dtype)}
    return block
