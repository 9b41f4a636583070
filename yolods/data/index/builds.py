"""Where the index of a split is kept: each build in a folder of its own, and a file that names the
newest one."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from yolods.data.index.columns import ColumnType
from yolods.data.index.table import Index, IndexWriter
from yolods.system.files import replace_text

CURRENT = "current"
KEPT = 7 * 24 * 3600
"""Seconds for which an earlier build is kept.

Runs may have mapped it, and on a file server a mapped file that another host removes ends a
process.
"""


class IndexStore:
    """The builds of one index."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when something is built."""
        self._folder = folder

    def newest(self) -> Index | None:
        """The newest complete build, or None."""
        try:
            name = (self._folder / CURRENT).read_text(encoding="utf-8")
            return Index(self._folder / name)
        except (OSError, ValueError, TypeError):
            return None  # none yet, of another version, or damaged by a crash: it is built again

    @contextmanager
    def build(self, further: Mapping[str, ColumnType] | None = None) -> Iterator[IndexWriter]:
        """Write a new build, which becomes the newest one when the context ends well.

        Args:
            further: as for `IndexWriter`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        try:
            with IndexWriter(self._folder / name, further) as writer:
                yield writer
        except BaseException:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            raise
        replace_text(self._folder / CURRENT, name)
        self._remove_old(name)

    def remove(self) -> None:
        """Remove all builds. Only for a folder of this host: a mapped file stays whole there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_old(self, newest: str) -> None:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                old = time.time() - entry.stat().st_mtime > KEPT
                if entry.is_dir() and entry.name != newest and old:
                    shutil.rmtree(entry.path, ignore_errors=True)
