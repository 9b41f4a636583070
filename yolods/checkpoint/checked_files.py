"""Files that are on the disk once they are said to be: hashed while they are written, flushed, compared when read.

The checksum is CRC-32. What it has to find is damage, not forgery (a checkpoint is a pickle, which a forger would need
no collision for): it finds every flipped bit and every burst of up to 32, and misses other damage once in 4 billion.
It costs half of what SHA-256 or BLAKE2 do (benchmarks/checkpoint_faults.md): states are gigabytes, and a run waits.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yolods.system.files import write_all

READ_BYTES = 1 << 22
"""Read at once: large enough that the checksum releases the interpreter for most of its time."""


@dataclass(frozen=True)
class FileRecord:
    """What a file has to be."""

    size: int
    """Bytes."""
    crc32: str
    """Eight hexadecimal digits."""


class HashingFile:
    """What `torch.save` and others write to, front to back; knows the checksum without reading anything again."""

    def __init__(self, handle: int) -> None:
        """
        Args:
            handle: an open file, which stays its opener's to close.
        """
        self._handle, self._size, self._crc = handle, 0, 0
        self.fault: OSError | None = None
        """Why a write failed; torch turns it into a RuntimeError about positions in the file."""

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        count = len(view)
        self._crc = zlib.crc32(view, self._crc)
        try:
            write_all(self._handle, view)
        except OSError as error:
            self.fault = error
            raise
        self._size += count
        return count

    def flush(self) -> None:
        """Nothing is held back; `torch.save` asks for it."""

    @property
    def record(self) -> FileRecord:
        """Of what was written so far."""
        return FileRecord(self._size, f"{self._crc:08x}")


def write_file(path: Path, write: Callable[[HashingFile], object]) -> FileRecord:
    """Let `write` fill a file, and flush it to the disk.

    Raises:
        OSError: the file is not whole; something of it may be there.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        file = HashingFile(handle)
        try:
            write(file)
        except RuntimeError:
            if file.fault is not None:
                raise file.fault from None
            raise
        os.fsync(handle)
    finally:
        os.close(handle)
    return file.record


def write_text(path: Path, text: str) -> FileRecord:
    """A file of a line or a few, flushed to the disk."""
    return write_file(path, lambda file: file.write(text.encode()))


def damage(path: Path, expected: FileRecord) -> str | None:
    """What is wrong with a file, or None. Reads all of it, unless its size tells already."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.size:
                return f"{'cut short' if size < expected.size else 'too long'}, {size} of {expected.size} bytes"
            crc = 0
            while part := file.read(READ_BYTES):
                crc = zlib.crc32(part, crc)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None if f"{crc:08x}" == expected.crc32 else f"damaged, its checksum is {crc:08x} instead of {expected.crc32}"
