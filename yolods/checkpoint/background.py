"""A background thread for one task at a time, which keeps an exception until it is fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs one task after another in a thread. Only the thread that created it may call it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    def start(self, work: Callable[[], object], name: str) -> None:
        """Begin `work`; the previous task must be finished."""
        assert self._thread is None or not self._thread.is_alive(), "one task at a time"
        # A daemon, so that a task that hangs, as on a lost disk, cannot keep the process alive.
        self._thread = threading.Thread(target=self._do, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # `take_fault` returns it to the main thread
            self._fault = error

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` for the task; True if it is finished, or there was none."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def take_fault(self) -> Exception | None:
        """The exception of the finished task, or None; each is returned once."""
        if self._thread is None or self._thread.is_alive():
            return None
        fault, self._fault = self._fault, None
        return fault
