"""Refuses a folder that files cannot be written to, before anything is done for them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from yolods.errors import UserError


def check_writable(folder: Path, another: str) -> None:
    """Look whether this user can write files to a folder, which may have to be made first.

    Args:
        folder: the folder.
        another: how to name another one, as the end of a message.

    Raises:
        UserError: a line with the reason and the remedy.
    """
    path = Path(os.path.abspath(folder))
    place, fault = path, ""
    for place in (path, *path.parents):
        try:
            os.stat(place)
            break
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink():
                target = os.readlink(place)
                fault = f"{place} is a link to {target}, which is not there; {another}"
                break
        except OSError as error:
            fault = _fault_of(error, place, another)
            break
    if fault := fault or _fault(place, another, wanted=path):
        raise UserError(f"{folder}: {fault}")


def _fault_of(error: OSError, place: Path, another: str) -> str:
    """Why a path cannot be looked at."""
    if error.errno == errno.EACCES:
        return f"this user may not look below {place.parent}; grant access to it, or {another}"
    return f"{place.name[:40]}: {os.strerror(error.errno or 0)}; {another}"


def _fault(place: Path, another: str, *, wanted: Path) -> str:
    """Why nothing can be written to, or made in, what exists; "" if nothing is found."""
    if not place.is_dir():
        is_it = "it" if place == wanted else place
        return f"{is_it} is not a folder; {another}"
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is on a file system that is read-only; {another}"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"this user may not write to {place}; grant access to it, or {another}"
    return ""
