"""Runs the launcher, and starts it again when a run has died of something that a new start may mend.

    status          what it means                               again?
    0               the run has ended                           no
    2               a user's mistake, which each start repeats  no
    129, 130, 143   it was asked to stop, and has saved         no
    anything else   a rank, a host or the launcher died         yes

Whatever of a start is still there when its launcher has gone is ended before the next one. Linux hands orphans to the
nearest process that asks for them, so ranks of a launcher that was killed are found here as well.
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
"""Ranks whose launcher was killed notice it within a second, and may have stacks to write."""

MEANINGS = {75: "a rank was lost or stuck", 137: "it was killed", 247: "a rank was killed", 255: "a host was lost"}
"""Statuses that say more than their number. DeepSpeed gives 256 less the signal where a rank was killed."""


@dataclass(frozen=True)
class Start:
    """One start of the launcher."""

    command: Sequence[str]
    variables: Mapping[str, str]
    """To be set besides those that are."""
    about: str = ""
    """From where it goes on and on how many ranks, as in "from step 128 on 2 ranks"."""


def supervise(first: Start, again: Callable[[int], Start | int], *, restarts: int) -> int:
    """Run `first`, and after a failure what `again` gives, up to `restarts` times.

    Args:
        again: what to start after such an exit status; a number: nothing, and with what to end.

    Returns:
        the exit status.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start, number = first, 0
    with _Requests() as requests:
        while True:
            status = requests.run(start)
            if status == 0:  # whatever was asked for meanwhile
                return 0
            _end_family()
            if requests.asked is not None:
                return 128 + requests.asked
            if status in FINAL or restarts == 0:
                return status
            meaning = f" ({MEANINGS[status]})" if status in MEANINGS else ""
            if number == restarts:
                say(f"the run ended with status {status}{meaning}, after {number} restarts: giving up")
                return status
            following = again(status)
            if isinstance(following, int):
                return following
            number += 1
            say(f"the run ended with status {status}{meaning}; restart {number} of {restarts} {following.about}")
            start = following


def be_a_child() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, which hands Ctrl-C on as well; for the child
    between fork and exec."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    hold_ctrl_c()


class _Requests:
    """Hands requests to stop on to the launcher, which lets ranks save, and waits for it all the same."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
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
        if number == self.asked == signal.SIGINT:  # a rank that cannot run would be waited for
            for process in _family():
                with suppress(psutil.Error):
                    process.kill()
            return
        self.asked = self.asked or signal.Signals(number)
        self._hand_on()

    def _hand_on(self) -> None:
        if self._child is not None and self._child.poll() is None:
            assert self.asked is not None
            self._child.send_signal(passed_on(self.asked))

    def run(self, start: Start) -> int:
        """Start a launcher and wait for it; gives its exit status as a shell would."""
        if self.asked is not None:
            return 128 + self.asked
        environ = {**os.environ, **start.variables}
        self._child = subprocess.Popen(start.command, env=environ, preexec_fn=be_a_child)
        if self.asked is not None:  # meanwhile
            self._hand_on()
        code = self._child.wait()
        return code if code >= 0 else 128 - code


def _end_family() -> None:
    """End what a start has left behind: it is given time, then told, and then killed."""
    alive = _family()
    for tell in (psutil.Process.is_running, psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.Error):
                tell(process)
        alive = psutil.wait_procs(alive, timeout=LEAVE_SECONDS)[1] if alive else []


def _family() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _is_ours(child)]


def _is_ours(process: psutil.Process) -> bool:
    """Not, for example, the connection that a user's ssh leaves open for the next one."""
    try:
        return any(word in part for part in process.cmdline() for word in ("yolods", "deepspeed"))
    except psutil.Error:
        return False


def say(text: str) -> None:
    """A line of the command's own, on standard error."""
    with suppress(OSError):
        print(f"yolods: {text}", file=sys.stderr, flush=True)
