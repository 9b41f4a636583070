"""Files with checksums: hashed while they are written, flushed to the disk, and compared when read.

The checksum is CRC-32. It must find damage, not forgery: a checkpoint is a pickle, so a forger
needs no collision. It finds every flipped bit and every burst of up to 32 bits, and misses other
damage once in 4 billion. It costs half as much as SHA-256 or BLAKE2
(benchmarks/checkpoint_faults.md), which matters because states are gigabytes and the run waits for
them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yolods.system.files import write_all

READ_BYTES = 1 << 22
"""Bytes per read: large enough that zlib releases the GIL for most of the time."""


@dataclass(frozen=True)
class FileRecord:
    """The expected size and checksum of a file."""

    size: int
    """Size in bytes."""
    crc32: str
    """Eight hexadecimal digits."""


class HashingFile:
    """A file for `torch.save` and others, written front to back, with a running checksum."""

    def __init__(self, handle: int) -> None:
        """
        Args:
            handle: an open file descriptor; the caller closes it.
        """
        self._handle, self._size, self._crc = handle, 0, 0
        self.fault: OSError | None = None
        """Why a write failed: torch replaces it by a RuntimeError about positions in the file."""

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
        """Do nothing, since writes are not buffered; `torch.save` calls it."""

    @property
    def record(self) -> FileRecord:
        """Size and checksum of everything written so far."""
        return FileRecord(self._size, f"{self._crc:08x}")


def write_file(path: Path, write: Callable[[HashingFile], object]) -> FileRecord:
    """Create a file with the content that `write` writes, and flush it to the disk.

    Raises:
        OSError: the file is incomplete; a part of it may exist.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        file = HashingFile(handle)
        try:
            write(file)
        except RuntimeError:  # raised by torch; the OSError says what happened
            if file.fault is not None:
                raise file.fault from None
            raise
        os.fsync(handle)
    finally:
        os.close(handle)
    return file.record


def write_text(path: Path, text: str) -> FileRecord:
    """Write a short text file and flush it to the disk."""
    return write_file(path, lambda file: file.write(text.encode()))


def damage(path: Path, expected: FileRecord) -> str | None:
    """What is wrong with a file, or None. Reads all of it unless its size is already wrong."""
    try:
        # Unbuffered: each part is read directly, without a second copy in Python's buffer.
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.size:
                return (
                    f"{'cut short' if size < expected.size else 'too long'}, {size} of "
                    f"{expected.size} bytes"
                )
            crc = 0
            while part := file.read(READ_BYTES):
                crc = zlib.crc32(part, crc)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return (
        None
        if f"{crc:08x}" == expected.crc32
        else f"damaged, its checksum is {crc:08x} instead of {expected.crc32}"
    )
