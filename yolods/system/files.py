"""Files that are replaced whole: written beside their place, flushed to the disk, and renamed into it.

Whatever happens, a kill or a power cut included, the place holds the earlier file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What file systems that have no fsync of folders (some FUSE and SMB mounts) answer."""


def replace_file(path: Path, write: Callable[[BinaryIO], object], *, shared: bool = False) -> None:
    """Let `write` fill a file, and put that in the place of `path`.

    Args:
        path: the place; its folder exists.
        write: is given the new file.
        shared: several processes may write `path` at once, so each has a name of its own beside it. Else there is one
            name, and what a kill leaves there is gone with the next write.

    Raises:
        OSError: the disk is full or not writable; the earlier file is left whole, and nothing beside it.
    """
    with _beside(path, str(os.getpid()) if shared else "") as handle, os.fdopen(handle, "wb", closefd=False) as file:
        write(file)


def replace_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """The same with a text in UTF-8; `errors` as in `str.encode`."""
    with _beside(path) as handle:
        write_all(handle, text.encode("utf-8", errors))


def replace_copy(source: Path, path: Path) -> None:
    """The same with the bytes of another file."""
    with source.open("rb") as original:
        replace_file(path, lambda file: shutil.copyfileobj(original, file, 1 << 20))


def partial_name(name: str, whose: str = "") -> str:
    """What a file is called while it is written; a kill leaves it."""
    return f".{name}{whose}.part"


@contextlib.contextmanager
def _beside(path: Path, whose: str = "") -> Iterator[int]:
    """The handle of a file beside `path`, which takes its place at the end."""
    partial = path.with_name(partial_name(path.name, whose))
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            yield handle
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    sync_folder(path.parent)


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of `data` to an open file, which may take it in pieces.

    Raises:
        OSError: some of it may have been written.
    """
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(folder: Path) -> None:
    """Flush names to the disk: a file that was flushed is lost in a power cut if its name was not.

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
