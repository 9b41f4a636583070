"""Standard input, output and error: open, and nothing raises at who prints, whatever the shell has left of them.

A closed descriptor would be given to the next file that is opened, and what somebody prints would end up in that file.
A screen that is full or gone must end neither a run nor, with a traceback, a command.
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
    """A descriptor to write to that remembers its first failure and raises none."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """As a file's, but that what cannot be written counts as written."""
        try:
            while (written := super().write(data)) is None:  # who shares the screen has made it non-blocking
                select.select((), (self.fileno(),), ())
            return written
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


_panes: dict[str, _Pane] = {}


def open_all() -> None:
    """Open what is closed, for this process and those that it starts, and make printing safe. A second call changes
    nothing, nor does one where somebody has put other streams in place."""
    opened = set()
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free: this one, as those below are open by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            opened.add(descriptor)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        now: TextIO | None = getattr(sys, name)
        if now is None and descriptor not in opened:  # a file that was opened meanwhile has the number
            descriptor = os.open(os.devnull, os.O_WRONLY)
        if now is None or (now is getattr(sys, f"__{name}__") and isinstance(now, io.TextIOWrapper)):
            setattr(sys, name, _safe(name, descriptor, now))


def show(text: str) -> None:
    """Print what a command was started for.

    Raises:
        UserError: it did not arrive. Not where the reader had enough: `| head` is no mistake.
    """
    print(text)
    sys.stdout.flush()
    if reason := lost():
        raise UserError(f"standard output cannot be written: {reason}; print to another place")


def lost() -> str:
    """Why what was printed did not arrive, where that is no matter of a reader who had enough; "": it did."""
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
        errors="replace" if name == "stdout" else "backslashreplace",  # for a locale that lacks a letter
        line_buffering=name == "stderr"
        or any(getattr(now, kind, False) for kind in ("line_buffering", "write_through")),
    )
