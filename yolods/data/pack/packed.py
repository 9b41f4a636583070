"""The source of a pack's images: read out of tar files, each with its checksum compared."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from yolods.data.index.table import Index
from yolods.data.pack.decode import Undecodable, decode_image
from yolods.data.pack.manifest import (
    PACK_FILE,
    PackRecord,
    check_shards,
    pack_index,
    read_record,
)
from yolods.data.scan import Opening
from yolods.data.source import Source, Unreadable
from yolods.errors import UserError

OPEN_FILES = 128
"""Tar files that a process keeps open; a process may open about a thousand files in all."""
READ_CHUNK = 1 << 18
"""Bytes whose checksum is taken as soon as they are read, while a core's own cache has them."""


def open_pack(opening: Opening) -> PackedImages:
    """The `Opener` of folders that end in .pack.

    Raises:
        UserError: the pack is not complete, of another format, or of other channels.
    """
    spec, paths = opening.spec, opening.spec.sources(opening.split)
    if len(paths) > 1:
        raise UserError(
            f"{', '.join(map(str, paths))}: a split takes one pack; pack the sets together, from "
            "a yaml that names them all"
        )
    packed = PackedImages.opened(paths[0], opening.folder)
    if (channels := packed.record.settings["channels"]) != spec.channels:
        raise UserError(
            f"{spec.yaml}: channels: {spec.channels}, but {paths[0]} was packed with {channels}"
        )
    return packed


def is_raw_pack(source: Source) -> bool:
    """Whether a source reads images that need no decoding."""
    return isinstance(source, PackedImages) and bool(source.record.settings["uncompressed"])


class PackedImages:
    """A `Source` of the images in a pack."""

    def __init__(self, pack: Path, index: Index, record: PackRecord) -> None:
        """
        Args:
            pack: the folder.
            index: its index.
            record: the content of its pack.json.
        """
        self.index, self.side = index, record.settings["imgsz"]
        self.record = record
        """What the pack consists of."""
        self._pack = pack
        self._tars = [str(pack / shard.file) for shard in record.shards]
        self._open = _opener()

    @classmethod
    def opened(cls, pack: Path, folder: Path) -> PackedImages:
        """A finished pack; the lengths of its tar files are compared.

        Args:
            pack: the folder.
            folder: where what is derived from its index is kept, beside that of other packs.

        Raises:
            UserError: it is not complete, damaged, or of another format.
        """
        record = read_record(pack)
        check_shards(pack, record)
        # A pack that is made again must not find what was derived from the earlier one.
        name = blake2b((pack / PACK_FILE).read_bytes(), digest_size=8).hexdigest()
        with suppress(OSError):  # without room for notes they are made again
            (folder / name).mkdir(parents=True, exist_ok=True)
        index = pack_index(pack, folder / name)
        if index.counts.images != record.images:
            raise UserError(
                f"{pack}: its index has {index.counts.images} images and {PACK_FILE} "
                f"{record.images}; copy the pack again"
            )
        return cls(pack, index, record)

    def read(self, row: int) -> np.ndarray:
        """See `Source.read`. The message of `Unreadable` names the tar file."""
        data = self.stored(row)
        try:
            return decode_image(
                data,
                self._suffix(row),
                self.record.settings["channels"],
                plain_jpeg=bool(self.index.columns["plain_jpeg"][row]),
            )
        except Undecodable as error:
            raise Unreadable(self._named(row)) from error

    def place(self, identity: str) -> str:
        """The pack and the image's identity."""
        return f"{self._pack}: {identity}"

    def stored(self, row: int) -> np.ndarray:
        """(bytes,) uint8, the stored file of an image.

        Raises:
            Unreadable: it cannot be read, or its checksum is wrong.
        """
        columns = self.index.columns
        data = np.empty(int(columns["size"][row]), np.uint8)
        try:
            file = self._open(self._tar(row))
            read, crc32 = _fill(data, file.descriptor, int(columns["offset"][row]))
        except OSError as error:
            raise Unreadable(f"{self._named(row)}: {error}") from error
        if read != len(data) or crc32 != int(columns["crc32"][row]):
            raise Unreadable(f"{self._named(row)}: wrong checksum")
        return data

    def _tar(self, row: int) -> str:
        return self._tars[self.index.columns["shard"][row]]

    def _named(self, row: int) -> str:
        return f"{self._tar(row)}: {self.index.ids[row]}"

    def _suffix(self, row: int) -> str:
        """Ending of the original file, if that is what is stored."""
        return "" if self.side else os.path.splitext(self.index.ids[row])[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, whose numbers mean nothing in another process."""
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = _opener()


def _fill(data: np.ndarray, descriptor: int, offset: int) -> tuple[int, int]:
    """Read a file from `offset` into `data`; returns the bytes that were there and their crc32."""
    view, read, crc32 = memoryview(data), 0, 0
    while got := os.preadv(descriptor, [part := view[read : read + READ_CHUNK]], offset + read):
        crc32 = zlib.crc32(part[:got], crc32)
        read += got
    return read, crc32


class _OpenFile:
    """A file that is closed when nobody uses it any more.

    Threads, and processes that are forked, may share it: `pread` has no place of its own.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        # Absent if opening failed.
        if (descriptor := getattr(self, "descriptor", None)) is not None:
            os.close(descriptor)


def _opener() -> Any:
    return lru_cache(maxsize=OPEN_FILES)(_OpenFile)
