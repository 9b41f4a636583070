"""Ctrl-C ends a run between two batches.

In the middle of one it is not safe: Python raises KeyboardInterrupt wherever it happens to be. Seen with torch 2.13 and
deepspeed 0.19.8: it was lost in a callback and training went on (2 of 8 tries), and the writer of a checkpoint aborted
the process from C++ (1 of 8).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_pressed = False


@contextmanager
def between_batches() -> Iterator[None]:
    """Within: the first Ctrl-C waits for `check`; a second one acts at once. Does nothing outside the main thread.

    What fails after it counts as interrupted: of several ranks one stops first, and the others lose their connection.
    """
    global _pressed
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        global _pressed
        if _pressed:
            raise KeyboardInterrupt
        _pressed = True

    _pressed = False
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if _pressed:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, earlier)
        _pressed = False


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed."""
    if _pressed:
        raise KeyboardInterrupt
