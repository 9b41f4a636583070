"""Ends a rank that gives no sign of life, and says when one dies without a word: a small process beside each rank.

A thread of the rank could do neither: it is stopped, killed, or shut out by a call that keeps the interpreter, together
with what it watches. The rank writes a line a second to its sidecar's standard input; the last one says where it was.

    a line        where the rank stands; with ASKED at its end, that it was asked to stop
    BYE           the rank is about to end, and has said why itself: the sidecar leaves
    end of file   it has ended, and nobody has said why

It is no child of the rank: DeepSpeed's launcher, asked to stop, waits for all descendants of a rank, and where nobody
takes an orphan's exit status that is 30 seconds for each sidecar.

Imports nothing but the standard library and runs as a file, so that a sidecar takes 20 ms to start and 8 MiB.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

BYE, ASKED = "bye", " (asked to stop)"
SIDECAR_TICK = 0.25


class Sidecar:
    """A rank's end of the pipe."""

    def __init__(self, name: str, silence: float) -> None:
        """Start a sidecar for this process.

        Args:
            name: what it calls this process, as in "rank 1 on worker-2".
            silence: seconds without a line after which it kills this process.
        """
        command = [sys.executable, "-I", "-S", __file__, name, str(os.getpid()), str(silence)]
        reading, self._pipe = os.pipe()
        try:
            subprocess.run(command, stdin=reading, stdout=subprocess.DEVNULL, check=True)
        finally:
            os.close(reading)
        os.set_blocking(self._pipe, False)

    def tell(self, line: str) -> None:
        """Give a sign of life. Never waits, never raises."""
        with contextlib.suppress(OSError):  # it is gone, or so slow that the pipe is full
            os.write(self._pipe, f"{line}\n".encode())

    def leave(self) -> None:
        """End it: this process is about to end, and nobody need say so."""
        self.tell(BYE)


def main(name: str, pid: int, silence: float) -> None:
    """Keep watch until the rank has ended; in a process of its own, while this one ends."""
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the rank, which ends this process by ending
    last, text, quiet = "the start", b"", 0.0
    while True:
        before = time.monotonic()
        # Its end does not have to close the pipe: loader processes that it forked hold the other end, too.
        alive = _runs(pid)
        if select.select([0], [], [], SIDECAR_TICK if alive else 0)[0]:
            part = os.read(0, 1 << 16)
            if not part:
                break
            *lines, text = (text + part).split(b"\n")
            last, quiet = (lines[-1].decode(errors="replace") if lines else last), 0.0
            if last == BYE:
                return
            continue
        if not alive:
            break
        # Not the clock: a machine that slept, or a run suspended by Ctrl-Z together with this process, is not stuck.
        quiet += min(time.monotonic() - before, 2 * SIDECAR_TICK)
        if quiet > silence:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            # Only now: a screen that is held would hold this process, too.
            _say(f"{name} (process {pid}) had given no sign of life for {quiet:.0f} s and was killed; it was in {last}")
            return
    why = "killed, or crashed (dmesg tells whether memory ran out)"
    if last.endswith(ASKED):
        why = "it was killed before it had stopped (DeepSpeed's own launcher waits 30 s); its last checkpoint stays"
    _say(f"{name} (process {pid}) ended without a word in {last}: {why}")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"yolods: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
