"""What a call that packs a split has finished, so that the next one goes on behind it.

train.pack/unfinished/settings.json    what it packs, and how; locked while a process packs
train.pack/unfinished/00000/           the index of a finished tar file: it has this name last
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from yolods.data.index.block import Block
from yolods.data.index.columns import Columns
from yolods.data.index.table import Index, IndexWriter
from yolods.data.pack.manifest import INDEX_FOLDER, PACK_FILE, SUMS_FILE
from yolods.data.pack.sample import PACK_COLUMNS
from yolods.data.pack.shard import ShardRecord
from yolods.errors import UserError
from yolods.system.files import partial_name, sync_folder

UNFINISHED, SETTINGS, SHARD_FILE = "unfinished", "settings.json", "shard.json"
ROWS_AT_ONCE = 4096
"""Rows of an index that are copied at a time."""


class PackBusy(UserError):
    """Another process is writing the pack."""


class BegunPack:
    """An unfinished pack, which only this process may write."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """
        Args:
            folder: of the pack; made here if there is none.
            settings: must be those of an earlier call.
            overwrite: remove what an earlier call has left.

        Raises:
            PackBusy: another process is packing.
            UserError: the folder has something else in it, or an earlier call had other settings.
        """
        self._pack, self._folder = folder, folder / UNFINISHED
        _refuse_foreign(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = _locked(self._folder / SETTINGS, folder)
        try:
            self._refuse_finished(overwrite)
            self._take(dict(settings), overwrite)
        except BaseException:
            os.close(self._lock)
            raise
        self.shards = self._finished()
        """The finished tar files."""
        self._remove_rest()

    def release(self) -> None:
        """Let other processes pack, and leave nothing behind if nothing was finished.

        A second call does nothing.
        """
        if self._lock is None:
            return
        if not self.shards:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # not empty
                self._pack.rmdir()
        os.close(self._lock)
        self._lock = None

    def index_of(self, number: int) -> Index:
        """The index of a finished tar file."""
        return Index(self._folder / shard_name(number))

    def new_index(self) -> IndexWriter:
        """The index of the next tar file, to be written while the tar file is."""
        return IndexWriter(self._folder / "part", PACK_COLUMNS)

    def finish_shard(self, record: ShardRecord) -> None:
        """Note that the next tar file, and the index in `new_index`, are complete on disk."""
        number = len(self.shards)
        path = self._folder / "part"
        (path / SHARD_FILE).write_text(json.dumps(asdict(record)), encoding="utf-8")
        _flush(path)
        os.replace(path, self._folder / shard_name(number))
        sync_folder(self._folder)
        self.shards.append(record)

    def whole_index(self) -> Path:
        """The index of all finished tar files, complete in a folder of its own."""
        path = self._folder / INDEX_FOLDER
        shutil.rmtree(path, ignore_errors=True)
        with IndexWriter(path, PACK_COLUMNS) as writer:
            for number in range(len(self.shards)):
                for block in blocks_of(self.index_of(number)):
                    writer.add(block)
        _flush(path)
        return path

    def _refuse_finished(self, overwrite: bool) -> None:
        """Refuse a pack that another process has finished since the caller has looked."""
        if not overwrite and (self._pack / PACK_FILE).exists():
            remove_unfinished(self._pack)
            raise PackBusy(f"another process has just finished {self._pack}; try again")

    def _take(self, settings: dict[str, Any], overwrite: bool) -> None:
        """Compare settings with those of an earlier call, or note them."""
        assert self._lock is not None
        before = _parsed(os.pread(self._lock, 1 << 20, 0))
        if overwrite:
            _remove_pack(self._pack)
        elif before:
            _compare(self._pack, before, settings)
            return
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps(settings).encode(), 0)
        os.fsync(self._lock)
        sync_folder(self._folder)

    def _finished(self) -> list[ShardRecord]:
        found: list[ShardRecord] = []
        while record := self._finished_shard(len(found)):
            found.append(record)
        return found

    def _finished_shard(self, number: int) -> ShardRecord | None:
        folder = self._folder / shard_name(number)
        try:
            record = ShardRecord(**json.loads((folder / SHARD_FILE).read_text("utf-8")))
            whole = (self._pack / record.file).stat().st_size == record.bytes
            return record if whole and Index(folder).counts.images else None
        except (OSError, ValueError, TypeError):
            return None  # not begun, or a crash has left it incomplete

    def _remove_rest(self) -> None:
        """Remove what belongs to no finished tar file."""
        kept = {shard_name(number) for number in range(len(self.shards))}
        for path in self._folder.iterdir():
            if path.name not in kept | {SETTINGS}:
                shutil.rmtree(path)
        for path in _tar_files(self._pack):
            if path.name.startswith(".") or path.stem not in kept:
                path.unlink()


def shard_name(number: int) -> str:
    """Name of a tar file without its ending."""
    return f"{number:05}"


def remove_unfinished(folder: Path) -> None:
    """Remove what was needed to go on, of a pack that is finished."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def blocks_of(index: Index) -> Iterator[Block]:
    """All rows of a pack's index, some at a time."""
    by_row: dict[int, list[Any]] = {}
    for row, problem in index.problems() if index.counts.problems else ():
        by_row.setdefault(row, []).append(problem)
    for start in range(0, index.counts.images, ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, index.counts.images))
        block = _block(index, rows)
        block.problems = [(row - start, each) for row in rows for each in by_row.get(row, ())]
        yield block


def _block(index: Index, rows: range) -> Block:
    columns = index.columns
    part = slice(rows.start, rows.stop)
    boxes = slice(*_bounds(columns, "box_end", rows.start, rows.stop))
    points = slice(*_bounds(columns, "point_end", boxes.start, boxes.stop))
    return Block(
        ids=[index.ids[row] for row in rows],
        boxes=_lengths(columns, "box_end", part),
        points=_lengths(columns, "point_end", boxes),
        box=columns["box"][boxes],
        line=columns["line"][boxes],
        point=columns["point"][points],
        problems=[],
        further={name: columns[name][part] for name in PACK_COLUMNS},
        **{
            name: columns[name][part]
            for name in ("shape", "stat", "digest", "place", "lines_skipped")
        },
    )


def _bounds(columns: Columns, name: str, start: int, stop: int) -> tuple[int, int]:
    """Where the parts of some owners begin and end."""
    ends = columns[name]
    return (int(ends[start - 1]) if start else 0), (int(ends[stop - 1]) if stop else 0)


def _lengths(columns: Columns, name: str, part: slice) -> np.ndarray:
    first = _bounds(columns, name, part.start, part.start)[0]
    return np.diff(columns[name][part], prepend=first)


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name another --out")
    ours = any((folder / name).exists() for name in (PACK_FILE, UNFINISHED))
    if not ours and any(folder.iterdir()):
        raise UserError(f"{folder} has files that are no pack; name another --out")


def _locked(file: Path, pack: Path) -> int:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Unlike flock, this is not inherited by processes that are forked from a killed one.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(handle)
            raise PackBusy(
                f"another process is writing {pack}; wait for it, or name another --out"
            ) from None
        # A file system without locks.
    return handle


def _parsed(text: bytes) -> dict[str, Any]:
    """Settings; none if a crash has cut them off, which it can only before the first tar file."""
    try:
        found = json.loads(text)
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _compare(pack: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings."""
    if differences := settings_changes(before, now):
        raise UserError(
            f"{pack} was begun with other settings ({'; '.join(differences)}); repeat them to go "
            "on, or start again with --overwrite"
        )


def settings_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A text for each setting that differs."""
    names = dict.fromkeys((*before, *now))
    return [
        f"{name}: {before.get(name)}, now {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _remove_pack(folder: Path) -> None:
    """Remove a pack's own files; pack.json first, because without it the pack is not complete."""
    for name in (PACK_FILE, SUMS_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / INDEX_FOLDER, ignore_errors=True)
    for path in (folder / UNFINISHED).iterdir():
        if path.name != SETTINGS:
            shutil.rmtree(path)
    for path in _tar_files(folder):
        path.unlink()


def _flush(folder: Path) -> None:
    """Flush an index to disk; its columns are there already."""
    for file in folder.iterdir():
        if file.suffix != ".npy":
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def _tar_files(folder: Path) -> list[Path]:
    """Tar files of a pack, finished or not."""
    return [*folder.glob("[0-9]*.tar"), *folder.glob(partial_name("[0-9]*.tar"))]
