"""Whether the files of an index are still as they were when it was made.

A folder's time changes with every file that is added to it, removed from it or renamed. A file that
was written again in place shows only in its own size and time. Up to `ALL` files, all of them are
looked at; of more, `DRAWN`, anew by every start, because a look at a million files takes
several seconds locally and minutes on a file server.

A file that was written again with its old size and time shows in the time of its last change, of
content or rights, which no program can set. Only `every` compares it, because a copy of a data set
has others: what is found is checked again, and no more.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from yolods.data.index.block import stat_of, state_of
from yolods.data.index.columns import ColumnType
from yolods.data.index.table import Index

ALL = 20_000
"""Images of a set, each with its label file, up to which a start looks at every one."""
DRAWN = 5_000
"""Images of a larger set that a start looks at: a file that the kernel has not looked up lately
takes 15 microseconds of CPU time."""
THREADS = 8
"""Threads that ask a slow file system for sizes and times."""
TRIED = 64
"""Images that one thread looks at first, to see how long an answer takes."""
SLOW = 0.001
"""Seconds per image, with its label file, above which threads pay. A local file system answers in
a hundredth of that, and threads then wait for the interpreter's lock: they double the CPU time."""

CHANGE_COLUMNS = {"changed": ColumnType("<i8", 2)}
"""The column that an index of files has beside those of every index: when image and labels changed
last, see `state_of`."""


@dataclass(frozen=True)
class Surroundings:
    """The folders and lists out of which a split's files were found."""

    folders: dict[str, int]
    """Modification time in ns by folder; -1: absent."""
    lists: dict[str, list[int]]
    """Size and time by .txt list."""

    def as_dict(self) -> dict[str, Any]:
        """For the index's `further`."""
        return asdict(self)


def surroundings(folders: Iterable[str], lists: Iterable[str]) -> Surroundings:
    """The present state of folders and lists."""
    names = dict.fromkeys(folders)
    with ThreadPoolExecutor(THREADS) as pool:
        times = dict(zip(names, pool.map(_time, names, chunksize=64), strict=True))
    return Surroundings(times, {name: list(stat_of(name)) for name in lists})


def parents(files: Iterable[str]) -> list[str]:
    """The folders of files, each once."""
    return list(dict.fromkeys(map(os.path.dirname, files)))


def change(
    index: Index, before: Surroundings, files_of: Callable[[int], Sequence[str]], *, every: bool
) -> str:
    """The first file, folder or list that is no longer as it was; "" if none is found.

    Args:
        index: the index.
        before: the surroundings at its making.
        files_of: image and label file of a row.
        every: look at every file, and also at the time of its last change.
    """
    now = surroundings(before.folders, before.lists)
    for one, other in ((now.folders, before.folders), (now.lists, before.lists)):
        for name, state in one.items():
            if state != other[name]:
                return name
    count = index.counts.images
    all_of_them = every or count <= ALL
    rows = range(count) if all_of_them else sorted(random.Random().sample(range(count), DRAWN))
    look = partial(_first_change, index, files_of=files_of, every=every)
    began = time.monotonic()
    if found := look(rows[:TRIED]):
        return found
    threads = THREADS if time.monotonic() - began > TRIED * SLOW else 1
    parts = [rows[TRIED + start :: threads] for start in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return next(filter(None, pool.map(look, parts)), "")


def _first_change(
    index: Index, rows: Sequence[int], files_of: Callable[[int], Sequence[str]], *, every: bool
) -> str:
    chosen = np.asarray(rows, dtype=np.int64)
    known = index.columns["stat"][chosen].reshape(-1, 2, 2)
    if every:
        known = np.concatenate([known, index.columns["changed"][chosen][..., None]], axis=2)
    look: Callable[[str], tuple[int, ...]] = state_of if every else stat_of
    for row, states in zip(rows, known.tolist(), strict=True):
        for file, state in zip(files_of(row), states, strict=True):
            if list(look(file)) != state:
                return file
    return ""


def _time(folder: str) -> int:
    return stat_of(folder)[1]
