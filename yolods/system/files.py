"""Atomic replacement of files: written beside their path, flushed to disk, and renamed.

After a kill or a power cut the path holds either the earlier file or the new one, each intact.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""Errors of file systems without fsync of folders (some FUSE and SMB mounts)."""


def replace_file(path: Path, write: Callable[[BinaryIO], object], *, shared: bool = False) -> None:
    """Let `write` fill a new file, and replace `path` by it.

    Args:
        path: path of the file; its folder exists.
        write: called with the new file.
        shared: several processes may write `path` at the same time, so each uses a temporary name
            of its own. Otherwise there is one name, and the next write removes what a kill left.

    Raises:
        OSError: the disk is full or not writable; the earlier file stays intact, and no temporary
            file is left.
    """
    with (
        _beside(path, _own_name() if shared else "") as handle,
        os.fdopen(handle, "wb", closefd=False) as file,
    ):
        write(file)


def replace_text(path: Path, text: str, *, errors: str = "strict", shared: bool = False) -> None:
    """As `replace_file`, with a text in UTF-8; `errors` as in `str.encode`."""
    with _beside(path, _own_name() if shared else "") as handle:
        write_all(handle, text.encode("utf-8", errors))


def replace_copy(source: Path, path: Path) -> None:
    """As `replace_file`, with the bytes of another file."""
    with source.open("rb") as original:
        replace_file(path, lambda file: shutil.copyfileobj(original, file, 1 << 20))


def _own_name() -> str:
    """A word that no other process has, on no host: a file server knows no process numbers."""
    return uuid.uuid4().hex


def partial_name(name: str, whose: str = "") -> str:
    """Name of a file while it is being written; a kill leaves it behind."""
    return f".{name}{whose}.part"


@contextlib.contextmanager
def _beside(path: Path, whose: str = "") -> Iterator[int]:
    """The descriptor of a file beside `path`, which replaces `path` when the block succeeds.

    The data are flushed before the rename: otherwise a power cut may leave the new name with no
    contents.
    """
    partial = path.with_name(partial_name(path.name, whose))
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            yield handle
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
    # Also after Ctrl-C: no partial file may stay.
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    sync_folder(path.parent)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of `data`, which the kernel may accept in parts.

    Raises:
        OSError: part of it may have been written.
    """
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(handle, view) :]


def read_at(path: Path, begin: int, room: memoryview) -> int:
    """Read bytes of a file into memory, from byte `begin` on.

    Returns:
        the bytes at the end of `room` that the file is too short for.

    Raises:
        OSError: the file cannot be read.
    """
    # Unbuffered: the bytes go from the kernel to that memory.
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while room and (count := file.readinto(room)):
            room = room[count:]
    return len(room)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk: a flushed file is lost in a power cut if its name is not.

    Raises:
        OSError: the folder cannot be read.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
