"""What a user did wrong, said in one clear line a fault; no other room raises anything at a user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in flags, files or data. `str()` is one or more finished lines, shown without a traceback."""


class OwnError(UserError):
    """A mistake that this process may be alone with, such as a variable of its host: every rank that finds it tells of
    it. Of other mistakes rank 0 tells, as all ranks find them."""


class Faults:
    """Collects faults, so that a user sees all of them in one go and not one a start."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, text: str) -> None:
        """Add one fault: a line that says what is wrong and what to do. What is already there is not repeated."""
        if text not in self._lines:
            self._lines.append(text)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Add the lines of a UserError that ends the block, and go on behind it."""
        try:
            yield
        except UserError as error:
            for line in str(error).splitlines():
                self.add(line)

    def raise_if_any(self, prefix: str = "") -> None:
        """End the search for faults.

        Args:
            prefix: a line to put above them; nothing by default.

        Raises:
            UserError: there is at least one fault; the message holds one line for each.
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
    """Offer the known name that is closest to `name`.

    Args:
        cutoff: how close, from 0 to 1 (`difflib.get_close_matches`).

    Returns:
        " (did you mean 'x'?)" with a leading space, or "" where nothing is close.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""
