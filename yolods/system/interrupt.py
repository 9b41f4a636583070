"""Requests to stop: Ctrl-C, SIGTERM and a closed terminal, noted here and honoured at a safe point.

The middle of a batch is not safe. Python raises KeyboardInterrupt at an arbitrary place; with torch
2.13 and deepspeed 0.19.8, it was lost in a callback and training continued (2 of 8 tries), and the
writer of a checkpoint aborted the process from C++ (1 of 8). A rank cannot stop alone, either:
DeepSpeed's launcher forwards SIGTERM only to its first rank and waits only for that one. So the
ranks agree to stop, with the numbers that they exchange in a step anyway.
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
"""Ctrl-C as launchers forward it. It is another signal because ranks may have received the
terminal's SIGINT already, and a second SIGINT acts at once."""
AGAIN_SECONDS = 0.05
"""Delay before a lost request is repeated."""
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, PASSED_ON)

_asked: signal.Signals | None = None
_patient = False
_abandoned = False


class Stopped(KeyboardInterrupt):
    """A request to stop on which all ranks have agreed."""

    def __init__(self, asked: signal.Signals | None = None) -> None:
        """
        Args:
            asked: the signal; None: the one that reached this process. A signal that reached only
                another rank counts as SIGTERM.
        """
        self.signal = asked or _asked or signal.SIGTERM
        self.lost = _abandoned
        """Whether nobody asked to stop, but the launcher of this process is gone."""
        super().__init__(self.signal.name)

    @property
    def status(self) -> int:
        """The exit status by the convention of shells."""
        return 128 + self.signal


@contextmanager
def noted() -> Iterator[None]:
    """Turn requests to stop into `Stopped`, or inside `patient` only note them.

    A second Ctrl-C acts at once in any case. Outside the main thread this does nothing.

    An exception after Ctrl-C counts as the interruption: one rank stops first, and the others lose
    their connection to it. After SIGTERM it does not, because DeepSpeed's launcher also sends
    SIGTERM when a rank has died.
    """
    global _asked, _patient, _abandoned
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked, _patient, _abandoned = None, False, False
    # CPython reports an exception that it cannot raise (in a callback from C, in `__del__`) to this
    # hook; a request must not be lost there.
    earlier, shown = heed(_note), sys.unraisablehook
    sys.unraisablehook = lambda lost: (
        _once_more() if isinstance(lost.exc_value, Stopped) else shown(lost)
    )
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
        # A launcher may forward Ctrl-C after the terminal's own has been handled.
        signal.signal(PASSED_ON, signal.SIG_IGN)
        _asked = None


def heed(handler: Any) -> dict[signal.Signals, Any]:
    """Call `handler` for every request to stop, and deliver a Ctrl-C that was held back.

    SIGHUP stays ignored if nohup has set it so.

    Returns:
        the earlier handlers.
    """
    heeded = [
        each
        for each in REQUESTS
        if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN
    ]
    earlier = {number: signal.signal(number, handler) for number in heeded}
    release_ctrl_c()
    return earlier


def hold_ctrl_c() -> None:
    """Block Ctrl-C in this process and its children, also after `exec`, until they call `heed`.

    During imports it would end in a traceback. The launcher forwards it to its children as
    PASSED_ON, which ends them without one.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def held() -> Iterator[None]:
    """Block Ctrl-C within, also in a program that this process becomes by `exec`."""
    hold_ctrl_c()
    try:
        yield
    finally:
        release_ctrl_c()


def release_ctrl_c() -> None:
    """Deliver a Ctrl-C that was held back, and those that follow."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def passed_on(number: int) -> int:
    """The signal with which a launcher forwards a request."""
    return PASSED_ON if number == signal.SIGINT else number


def by_a_user(number: int) -> int:
    """The signal that the user sent, which a launcher may have forwarded as PASSED_ON."""
    return signal.SIGINT if number == PASSED_ON else number


@contextmanager
def abrupt() -> Iterator[None]:
    """Within, Ctrl-C kills the process at once instead of raising KeyboardInterrupt.

    During imports of C++ modules a KeyboardInterrupt would end in a traceback.
    """
    # Python lets only the main thread change handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGINT)
    # Only if nobody has installed a handler: a launcher's or a run's own must stay.
    if earlier == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _note(number: int, frame: Any) -> None:
    global _asked
    if number == PASSED_ON:
        # The terminal's Ctrl-C came first; its forwarded copy is not a second request.
        if _asked == signal.SIGINT:
            return
        number = signal.SIGINT
    if number == _asked == signal.SIGINT:
        raise KeyboardInterrupt
    # Ctrl-C is kept against a later SIGTERM, because it decides the exit status.
    _asked = _asked if _asked == signal.SIGINT else signal.Signals(number)
    if not _patient:
        raise Stopped(_asked)


def _once_more() -> None:
    """Repeat a request that Python lost in a callback from C or in a `__del__`.

    There it can only print the exception and continue. SIGTERM, because a second SIGINT would act
    at once.
    """
    timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


@contextmanager
def patient() -> Iterator[None]:
    """Only note requests to stop, within and after an exception from within."""
    global _patient
    # No `finally`: after an exception, the cleanup that follows must not be interrupted, either.
    _patient = True
    yield
    _patient = False


def abandon() -> None:
    """Stop this process as on request, because its launcher is gone."""
    global _abandoned
    _abandoned = _asked is None
    os.kill(os.getpid(), signal.SIGTERM)


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked is not None


def pressed() -> bool:
    """Whether the request was Ctrl-C, which reaches every rank that was started in a terminal."""
    return _asked == signal.SIGINT
