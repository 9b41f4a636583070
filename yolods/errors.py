"""User errors, collected and reported as one clear line per fault."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error in flags, files or data. `str()` is one or more complete lines for the user.

    They are shown without a traceback.
    """


class OwnError(UserError):
    """An error that may affect only this process, such as a variable of its host.

    Every rank that finds one reports it. Any other `UserError` is found by all ranks and reported
    by rank 0.
    """


def reason_of(error: BaseException) -> str:
    """An exception of other code on one line: its type, and its text if it has one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Faults:
    """Collects faults, so that a user sees all of them at once instead of one per start."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, text: str) -> None:
        """Add one fault: a line with the problem and the remedy. Duplicates are dropped."""
        if text not in self._lines:
            self._lines.append(text)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch a UserError, add its lines, and continue after the block."""
        try:
            yield
        except UserError as error:
            for line in str(error).splitlines():
                self.add(line)

    def raise_if_any(self, prefix: str = "") -> None:
        """Raise the collected faults, if there are any.

        Args:
            prefix: a line above them; default: none.

        Raises:
            UserError: there is at least one fault; the message has one line per fault.
        """
        if self._lines:
            raise UserError("\n".join([prefix, *self._lines] if prefix else self._lines))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A suggestion of the known name that is most similar to `name`.

    Args:
        cutoff: minimum similarity, from 0 to 1 (`difflib.get_close_matches`).

    Returns:
        " (did you mean 'x'?)" with a leading space, or "" if nothing is similar.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""
