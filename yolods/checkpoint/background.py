"""Work that goes on beside the training: one piece at a time, in a thread, whose failure waits to be asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """A thread for one piece of work after the other. Only the thread that made this may call it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    def start(self, work: Callable[[], object], name: str) -> None:
        """Begin `work`; the one before has to be done."""
        assert self._thread is None or not self._thread.is_alive(), "one piece of work at a time"
        # A daemon, so that work which hangs, as on a disk that is gone, cannot keep the process.
        self._thread = threading.Thread(target=self._do, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # raised where it is asked for
            self._fault = error

    def join(self, seconds: float) -> bool:
        """Wait for the work, no longer than that; whether it is done, or there was none."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def take_fault(self) -> Exception | None:
        """What the work that is done failed with; told once."""
        if self._thread is None or self._thread.is_alive():
            return None
        fault, self._fault = self._fault, None
        return fault
