"""Where the index of a split is kept: each build in a folder of its own, and a file that names the
newest one."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from yolods.data.index.columns import ColumnType
from yolods.data.index.table import Index, IndexWriter
from yolods.system.files import partial_name, replace_text

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
        # Hosts that start together may share this folder, and each of them builds.
        replace_text(self._folder / CURRENT, name, shared=True)
        self._remove_old(name)

    def remove(self) -> None:
        """Remove all builds. Only for a folder of this host: a mapped file stays whole there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_old(self, newest: str) -> None:
        for path in self._folder.iterdir():
            # Another host may remove the same ones.
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime <= KEPT or path.name == newest:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.match(partial_name(CURRENT, "*")):  # of a process that was killed
                    path.unlink()
