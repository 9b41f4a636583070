"""Ctrl-C, SIGTERM and a closed terminal are requests to stop: they are noted, and a run acts on them where it can.

In the middle of a batch it cannot. Python raises KeyboardInterrupt wherever it happens to be; seen with torch 2.13 and
deepspeed 0.19.8: it was lost in a callback and training went on (2 of 8 tries), and the writer of a checkpoint aborted
the process from C++ (1 of 8). Nor can a rank stop alone: DeepSpeed's launcher hands SIGTERM to its first rank only, and
waits for that one. So ranks agree on it, with the numbers that a step exchanges anyway.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PASSED_ON = signal.SIGRTMIN
"""Ctrl-C as launchers hand it on. Ranks may have had it from the terminal, and of SIGINT a second one acts at once."""
AGAIN_SECONDS = 0.05
"""After which a request is made again that was lost."""
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, PASSED_ON)

_asked: signal.Signals | None = None
_patient = False
_abandoned = False


class Stopped(KeyboardInterrupt):
    """A request to stop, on which all ranks have agreed."""

    def __init__(self, asked: signal.Signals | None = None) -> None:
        """
        Args:
            asked: by which signal; None: by that which reached this process. What was sent to another rank counts as
                SIGTERM here.
        """
        self.signal = asked or _asked or signal.SIGTERM
        self.lost = _abandoned
        """Whether nobody has asked for it, but what has started the process is gone."""
        super().__init__(self.signal.name)

    @property
    def status(self) -> int:
        """The exit status that shells give to it."""
        return 128 + self.signal


@contextmanager
def noted() -> Iterator[None]:
    """Within: a request to stop raises Stopped, or, where work is `patient`, waits for it to ask; a second Ctrl-C acts
    at once in any case. Outside the main thread nothing changes.

    What fails after Ctrl-C counts as interrupted: of several ranks one stops first, and the others lose their
    connection. Not so after SIGTERM, which DeepSpeed's launcher sends as well where a rank has died.
    """
    global _asked, _patient, _abandoned
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, _patient, _abandoned = None, False, False
    earlier, shown = heed(_note), sys.unraisablehook
    sys.unraisablehook = lambda lost: _once_more() if isinstance(lost.exc_value, Stopped) else shown(lost)
    try:
        yield
    except Exception:
        if _asked == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        sys.unraisablehook = shown
        signal.signal(PASSED_ON, signal.SIG_IGN)  # it may come after what the terminal has sent has been answered
        _asked = None


def heed(handler: Any) -> dict[signal.Signals, Any]:
    """Have `handler` called for every request to stop; nohup's wish, that closed terminals be ignored, holds. What was
    held back comes now.

    Returns:
        the handlers before.
    """
    heeded = [each for each in REQUESTS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, handler) for number in heeded}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return earlier


def hold_ctrl_c() -> None:
    """Hold Ctrl-C back from this process, and from those that it starts or becomes, until they `heed` it: while they
    import it would end in a traceback. Their launcher hands it on to them as PASSED_ON, which ends them without one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def held() -> Iterator[None]:
    """Within, and in what the process becomes within: Ctrl-C is held back."""
    hold_ctrl_c()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def passed_on(number: int) -> int:
    """The signal by which a launcher hands a request on."""
    return PASSED_ON if number == signal.SIGINT else number


def by_a_user(number: int) -> int:
    """The signal that a user has sent, where a launcher may have handed it on."""
    return signal.SIGINT if number == PASSED_ON else number


@contextmanager
def abrupt() -> Iterator[None]:
    """Within, in the main thread: Ctrl-C ends the process on the spot. Imports of C++ would make a traceback of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGINT)
    if earlier == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _note(number: int, frame: Any) -> None:
    global _asked
    if number == PASSED_ON:
        if _asked == signal.SIGINT:
            return
        number = signal.SIGINT
    if number == _asked == signal.SIGINT:
        raise KeyboardInterrupt
    _asked = _asked if _asked == signal.SIGINT else signal.Signals(number)
    if not _patient:
        raise Stopped(_asked)


def _once_more() -> None:
    """Python was in a callback of C or in a `__del__`, where it can but print an exception and go on."""
    timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


@contextmanager
def patient() -> Iterator[None]:
    """Within, and after a failure within: requests to stop are only noted."""
    global _patient
    _patient = True
    yield
    _patient = False


def abandon() -> None:
    """Stop this process as on request, though nobody may have asked for it: what has started it is gone."""
    global _abandoned
    _abandoned = _asked is None
    os.kill(os.getpid(), signal.SIGTERM)


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked is not None


def pressed() -> bool:
    """Whether that was by Ctrl-C, which reaches every rank that a terminal has started."""
    return _asked == signal.SIGINT
