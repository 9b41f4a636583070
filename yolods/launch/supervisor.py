"""Runs the launcher, and restarts it after failures that a new start may fix.

    status          meaning                                     restart?
    0               the run has ended                           no
    2               a user error, which every start repeats     no
    129, 130, 143   stopped on request, checkpoint saved        no
    anything else   a rank, a host or the launcher died         yes

Before a restart, everything that the previous start left behind is ended. This process is a
subreaper: Linux reparents orphans to it, so it also finds the ranks of a launcher that was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from yolods.system.interrupt import by_a_user, heed, hold_ctrl_c, passed_on

FINAL = (0, 2, 129, 130, 143)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LEAVE_SECONDS = 15.0
"""Ranks notice within a second that their launcher was killed, and may need time to write
stacks."""

MEANINGS = {
    75: "a rank was lost or stuck",
    137: "it was killed",
    247: "a rank was killed",
    255: "a host was lost",
}
"""Statuses whose number does not explain itself. For a killed rank, DeepSpeed returns 256 minus
the signal."""


@dataclass(frozen=True)
class Start:
    """One start of the launcher."""

    command: Sequence[str]
    variables: Mapping[str, str]
    """Variables to add to the environment."""
    about: str = ""
    """Where it resumes and on how many ranks, as in "from step 128 on 2 ranks"."""


def supervise(first: Start, again: Callable[[int], Start | int], *, restarts: int) -> int:
    """Run `first`, and after each failure what `again` returns, up to `restarts` times.

    Args:
        again: maps the exit status to the next start, or to the number to exit with.

    Returns:
        the exit status.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start, number = first, 0
    with _Requests() as requests:
        while True:
            status = requests.run(start)
            # Also after a request to stop: the run had finished before it took effect.
            if status == 0:
                return 0
            # Before any restart: leftover ranks would hold the GPUs, the port and the run's lock.
            _end_family()
            if requests.asked is not None:
                return 128 + requests.asked
            if status in FINAL or restarts == 0:
                return status
            meaning = f" ({MEANINGS[status]})" if status in MEANINGS else ""
            if number == restarts:
                say(
                    f"the run ended with status {status}{meaning}, after {number} restarts: giving "
                    "up"
                )
                return status
            following = again(status)
            if isinstance(following, int):
                return following
            number += 1
            say(
                f"the run ended with status {status}{meaning}; restart {number} of {restarts} "
                f"{following.about}"
            )
            start = following


def be_a_child() -> None:
    """Tie this process to its parent, which forwards Ctrl-C, so that the terminal's is ignored.

    Runs between fork and exec.
    """
    end_with_parent()
    hold_ctrl_c()


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class _Requests:
    """Forwards requests to stop to the launcher, which lets ranks save, and still waits for it."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._pressed = False
        """Whether Ctrl-C was pressed."""
        self._child: subprocess.Popen[bytes] | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> _Requests:
        self._earlier = heed(self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        number = by_a_user(number)
        # The second Ctrl-C: a rank that hangs would never leave.
        if number == signal.SIGINT and self._pressed:
            for process in _family():
                with suppress(psutil.Error):
                    process.kill()
            return
        self._pressed |= number == signal.SIGINT
        self.asked = self.asked or signal.Signals(number)
        self._hand_on()

    def _hand_on(self) -> None:
        if self._child is not None and self._child.poll() is None:
            assert self.asked is not None
            self._child.send_signal(passed_on(self.asked))

    def run(self, start: Start) -> int:
        """Start a launcher, wait for it, and return its exit status as a shell would."""
        if self.asked is not None:
            return 128 + self.asked
        environ = {**os.environ, **start.variables}
        self._child = subprocess.Popen(start.command, env=environ, preexec_fn=be_a_child)
        # The request came while Popen ran, when there was no child to forward to.
        if self.asked is not None:
            self._hand_on()
        code = self._child.wait()
        return code if code >= 0 else 128 - code


def _end_family() -> None:
    """End what a start left behind: wait for it, then terminate it, then kill it."""
    alive = _family()
    # `is_running` only waits: ranks without a launcher stop by themselves and may write stacks.
    for tell in (psutil.Process.is_running, psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.Error):
                tell(process)
        alive = psutil.wait_procs(alive, timeout=LEAVE_SECONDS)[1] if alive else []


def _family() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _is_ours(child)]


def _is_ours(process: psutil.Process) -> bool:
    """Exclude foreign children, such as the connection that a user's ssh keeps open for reuse."""
    try:
        return any(word in part for part in process.cmdline() for word in ("yolods", "deepspeed"))
    except psutil.Error:
        return False


def say(text: str) -> None:
    """Print a line of the command's own on standard error."""
    with suppress(OSError):
        print(f"yolods: {text}", file=sys.stderr, flush=True)
