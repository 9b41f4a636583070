"""Makes the standard streams safe: all three are open, and printing never raises.

The next file to be opened would take the number of a closed descriptor, and whatever is printed
would end up in that file. A terminal that is full or gone must not end a run, nor may it end a
command with a traceback.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO

from yolods.errors import UserError


class _Pane(io.FileIO):
    """A writable descriptor that remembers its first error instead of raising it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write as a file does; data that cannot be written counts as written."""
        try:
            # None: another process that shares the terminal has made it non-blocking.
            while (written := super().write(data)) is None:
                select.select((), (self.fileno(),), ())
            return written
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


_panes: dict[str, _Pane] = {}


def open_all() -> None:
    """Open closed streams, for this process and its children, and make printing safe.

    A second call changes nothing, and streams that somebody has replaced stay.
    """
    opened = set()
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The kernel assigns the lowest free number, which is this one: those below are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            opened.add(descriptor)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        now: TextIO | None = getattr(sys, name)
        if now is None and descriptor not in opened:  # another file has taken the number since
            descriptor = os.open(os.devnull, os.O_WRONLY)
        if now is None or (
            now is getattr(sys, f"__{name}__") and isinstance(now, io.TextIOWrapper)
        ):
            setattr(sys, name, _safe(name, descriptor, now))


def show(text: str) -> None:
    """Print the output of a command.

    Raises:
        UserError: it could not be written. A reader that stopped reading (`| head`) is no error.
    """
    print(text)
    sys.stdout.flush()
    if reason := lost():
        raise UserError(f"cannot write to standard output: {reason}; print to another place")


def lost() -> str:
    """Why printed text was lost, unless the reader stopped reading; "": it was not lost."""
    failure = _panes["stdout"].failure if "stdout" in _panes else None
    return "" if failure is None or failure.errno == errno.EPIPE else str(failure.strerror)


def _safe(name: str, descriptor: int, now: TextIO | None) -> TextIO:
    if now is not None:
        with suppress(OSError):
            now.flush()
    pane = _panes[name] = _Pane(descriptor)
    return io.TextIOWrapper(
        io.BufferedWriter(pane),
        encoding=getattr(now, "encoding", None) or "utf-8",
        # For a locale that lacks a character.
        errors="replace" if name == "stdout" else "backslashreplace",
        line_buffering=name == "stderr"
        or any(getattr(now, kind, False) for kind in ("line_buffering", "write_through")),
    )
