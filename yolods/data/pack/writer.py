"""Writes the pack of a split: tar files one after the other, then one index of all.

A tar file is finished when it and its rows are complete on disk, and the next call goes on behind
it. So a call may be killed at any point, and the files at the end are the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolods.data.index.table import Index, IndexWriter
from yolods.data.pack.begun import (
    BegunPack,
    remove_unfinished,
    settings_changes,
    shard_name,
)
from yolods.data.pack.encode import Encoding
from yolods.data.pack.manifest import (
    INDEX_FOLDER,
    PACK_FILE,
    PackRecord,
    check_shards,
    hash_file,
    pack_index,
    read_record,
)
from yolods.data.pack.sample import (
    PackedRow,
    StoredSample,
    label_name,
    pack_block,
    packed_row,
)
from yolods.data.pack.shard import ROOM, MemberNames, ShardRecord, ShardWriter
from yolods.errors import UserError
from yolods.system.files import sync_folder

SHARD_BYTES = 1 << 30
"""Default length of a tar file."""
ROWS_WAITING = 256
"""Samples whose rows are written together."""


class PackWriter:
    """The pack of one split. A context manager: leaving it early keeps the finished tar files.

    For each sample in its order, `has` is called, and then `add` unless it returned True; `finish`
    completes the pack. A caller whose `further` proves that its samples are the same calls
    `last_finished` instead of `has`, and adds those behind.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        encoding: Encoding,
        *,
        channels: int = 3,
        shard_bytes: int = SHARD_BYTES,
        further: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """
        Args:
            folder: of the pack, by convention `<split>.pack`; its parent need not exist.
            split: 'train', 'val' or 'test'.
            encoding: how images are stored.
            channels: of the data set.
            shard_bytes: maximum length of a tar file, unless one sample is longer.
            further: what else decides about the samples, such as the stride of a video, as JSON.
            overwrite: start again.

        Raises:
            PackBusy: another process is packing.
            UserError: an earlier call had other settings, or the folder is not a pack.
        """
        self.folder, self.encoding, self.channels = folder, encoding, channels
        self._split, self._limit = split, shard_bytes
        settings = {"split": split, "channels": channels, **encoding.as_dict()}
        settings |= {"shard_bytes": shard_bytes, **(further or {})}
        self._settings = json.loads(json.dumps(settings))
        self._begun = self._begin(overwrite)
        self._names = MemberNames(split)
        self._known = self._known_rows()
        self._shard: _OpenShard | None = None

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shard is not None:
            self._shard.abandon()
        if self._begun is not None:
            self._begun.release()

    @property
    def complete(self) -> bool:
        """Whether an earlier call has finished the pack."""
        return self._begun is None

    @property
    def bytes_done(self) -> int:
        """Bytes of finished tar files."""
        shards = read_record(self.folder).shards if self._begun is None else self._begun.shards
        return sum(shard.bytes for shard in shards)

    def has(self, identity: str, stat: Sequence[int], digest: bytes) -> bool:
        """Whether the next sample is in a finished tar file.

        Args:
            identity, stat: of the sample.
            digest: the result of `digest_of`.

        Raises:
            UserError: another sample is there.
        """
        known = next(self._known, None)
        if known is None and not self.complete:
            return False
        if known != (identity, tuple(stat), digest):
            raise self._changed(identity)
        return True

    def last_finished(self) -> str | None:
        """The identity of the last sample in finished tar files; None: there is none."""
        last = None
        for known in self._known:
            last = known[0]
        return last

    def add(self, stored: StoredSample) -> None:
        """Append a sample.

        Raises:
            OSError: the disk is full.
        """
        assert self._begun is not None
        name = self._names.name(stored.check.id, stored.image.suffix)
        if self._shard is not None and self._shard.size_with(stored) > self._limit:
            self._finish_shard()
        if self._shard is None:
            self._shard = _OpenShard(self.folder, self._begun)
        self._shard.add(name, stored)

    def finish(self) -> PackRecord:
        """Complete the pack.

        Raises:
            UserError: there is no sample, or an earlier call had more.
        """
        if next(self._known, None) is not None:
            raise self._changed("a sample that is gone")
        if self._begun is None:
            remove_unfinished(self.folder)
            return read_record(self.folder)
        if self._shard is not None:
            self._finish_shard()
        if not self._begun.shards:
            raise UserError(f"{self.folder}: there is no image to pack")
        index = _placed(self._begun.whole_index(), self.folder)
        record = _record(index, self._split, self._settings, self._begun.shards)
        record.write(self.folder)
        remove_unfinished(self.folder)
        return record

    def discard(self) -> None:
        """Remove the pack, which is not finished and can never be."""
        if self._shard is not None:
            self._shard.abandon()
            self._shard = None
        shutil.rmtree(self.folder)

    def _begin(self, overwrite: bool) -> BegunPack | None:
        """The unfinished pack; None if it is finished."""
        if overwrite or not (self.folder / PACK_FILE).exists():
            return BegunPack(self.folder, self._settings, overwrite=overwrite)
        record = read_record(self.folder)
        if differences := settings_changes(record.settings, self._settings):
            raise UserError(
                f"{self.folder} is packed already, with other settings "
                f"({'; '.join(differences)}); --overwrite packs it again"
            )
        check_shards(self.folder, record)
        return None

    def _known_rows(self) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
        """What `has` compares, of every sample in a finished tar file."""
        for index in self._indexes():
            columns = index.columns
            for row, identity in enumerate(index.ids):
                self._names.name(identity, "")
                stat = tuple(columns["stat"][row].tolist())
                yield identity, stat, columns["digest"][row].tobytes()

    def _indexes(self) -> Iterator[Index]:
        if self._begun is None:
            yield pack_index(self.folder)
            return
        # Those of earlier calls: this one adds more, whose rows are not compared.
        for number in range(len(self._begun.shards)):
            yield self._begun.index_of(number)

    def _changed(self, what: str) -> UserError:
        return UserError(
            f"{what}: the data has changed since {self.folder} was "
            f"{'packed' if self.complete else 'begun'}; --overwrite packs it again"
        )

    def _finish_shard(self) -> None:
        assert self._shard is not None
        self._shard.finish()
        self._shard = None


def _placed(built: Path, pack: Path) -> Index:
    """The finished index, moved to its place in the pack."""
    path = pack / INDEX_FOLDER
    shutil.rmtree(path, ignore_errors=True)
    os.replace(built, path)
    sync_folder(pack)
    return Index(path)


def _record(
    index: Index, split: str, settings: dict[str, Any], shards: Sequence[ShardRecord]
) -> PackRecord:
    files = sorted(index.columns.folder.iterdir())
    return PackRecord(
        split=split,
        settings=settings,
        images=index.counts.images,
        boxes=index.counts.boxes,
        image_bytes=int(index.columns["size"].sum()),
        duplicates=index.counts.images - len(np.unique(index.columns["place"])),
        shards=tuple(shards),
        index={f"{INDEX_FOLDER}/{file.name}": hash_file(file) for file in files},
    )


class _OpenShard:
    """A tar file that is being written, with the index of its samples."""

    def __init__(self, folder: Path, begun: BegunPack) -> None:
        self._begun, self._number = begun, len(begun.shards)
        self._tar = ShardWriter(folder / f"{shard_name(self._number)}.tar")
        self._index: IndexWriter = begun.new_index()
        self._rows: list[PackedRow] = []
        """Rows that are not written yet."""

    def size_with(self, stored: StoredSample) -> int:
        """Bytes of the tar file with one more sample, at most."""
        return self._tar.size + len(stored.image.data) + len(stored.label or b"") + ROOM

    def add(self, name: str, stored: StoredSample) -> None:
        """Append an image and its labels."""
        place = self._tar.add(name, stored.image.data)
        if stored.label is not None:
            self._tar.add(label_name(name), stored.label)
        self._rows.append(packed_row(stored, name, place))
        if len(self._rows) == ROWS_WAITING:
            self._write_rows()

    def finish(self) -> None:
        """Complete both on disk, first the tar file."""
        if self._rows:
            self._write_rows()
        record = self._tar.finish()
        self._index.__exit__(None, None, None)
        self._begun.finish_shard(record)

    def abandon(self) -> None:
        """Remove the tar file; the next call removes the index."""
        self._tar.abandon()
        self._index.__exit__(InterruptedError, InterruptedError(), None)

    def _write_rows(self) -> None:
        self._index.add(pack_block(self._rows, self._number))
        self._rows.clear()
