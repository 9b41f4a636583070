"""The launcher as a process whose output appears where the caller prints, notebooks included."""

from __future__ import annotations

import codecs
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

import yolods
from yolods.system.interrupt import held
from yolods.system.invocation import CALLER

_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 2.0
"""How long to read after the end: a connection that ssh keeps open may hold the streams."""
ERROR = "error: "
"""How the command line begins the lines of a user's error."""


class Launcher:
    """One `yolods launch`, from the beginning to the end of the context.

    It is in a session of its own, so that Ctrl-C in a terminal reaches it once: from here. If this
    process dies, it stops as on request.
    """

    def __init__(self, words: Sequence[str], told: Path) -> None:
        """
        Args:
            words: words after `yolods launch`.
            told: the file in which the launcher names the run's folder.
        """
        self.errors: list[str] = []
        """Lines of a user's error, without ERROR."""
        self._line = ""
        # A bar needs the terminal itself; anything else is passed on through this process.
        terminal = _terminal(sys.stdout)
        with _undisturbed() as self._pressed:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "yolods", "launch", *words],
                env=environment(os.environ, told),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if terminal is None else terminal,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._streams = selectors.DefaultSelector()
            self._decoders = {}
            for stream, take in (
                (self._process.stdout, _show_output),
                (self._process.stderr, self._take_error),
            ):
                if stream is not None:
                    self._streams.register(stream, selectors.EVENT_READ, take)
                    self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")

    def wait(self, meanwhile: Callable[[], None]) -> int:
        """Pass the output on until the launcher has ended; its exit status, as a shell shows it.

        Ctrl-C stops the run as in a terminal, and an exception of `meanwhile` stops it as SIGTERM
        does: the ranks write a checkpoint. A second Ctrl-C kills them. What stopped the run is
        raised when all have ended.

        Args:
            meanwhile: called a few times per second.
        """
        stopped: BaseException | None = None
        if self._pressed:
            stopped = KeyboardInterrupt()
            self._ask_to_stop(stopped)
        while self._process.poll() is None:
            try:
                self._pass_on(_POLL_SECONDS)
                if stopped is None:
                    meanwhile()
            except BaseException as reason:
                stopped = stopped or reason
                self._ask_to_stop(reason)
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._streams.get_map() and time.monotonic() < deadline:
            self._pass_on(_POLL_SECONDS)
        if stopped is not None:
            raise stopped
        meanwhile()
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def show_errors(self) -> None:
        """Print the lines of errors, which are otherwise left to an exception."""
        for line in self.errors:
            _show(sys.stderr, f"{ERROR}{line}\n")

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.close()
        for stream in self._decoders:
            stream.close()

    def _ask_to_stop(self, reason: BaseException) -> None:
        # The ranks say what has stopped them, and nobody pressed Ctrl-C if a callback failed.
        pressed = isinstance(reason, KeyboardInterrupt)
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT if pressed else signal.SIGTERM)

    def _pass_on(self, seconds: float) -> None:
        """Pass on what arrives within some time."""
        if not self._streams.get_map():
            time.sleep(seconds)
            return
        for key, _ in self._streams.select(seconds):
            stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
            content = os.read(stream.fileno(), 1 << 16)
            key.data(self._decoders[stream].decode(content, final=not content))
            if not content:
                self._streams.unregister(stream)

    def _take_error(self, text: str) -> None:
        """Pass on whole lines of standard error, and keep those of a user's error."""
        *lines, self._line = (self._line + text).split("\n")
        if not text and self._line:
            lines, self._line = [*lines, self._line], ""
        for line in lines:
            if line.startswith(ERROR):
                self.errors.append(line.removeprefix(ERROR))
            else:
                _show(sys.stderr, f"{line}\n")


@contextmanager
def _undisturbed() -> Iterator[list[int]]:
    """Note Ctrl-C instead of raising it, so that it cannot come between a start and the code that
    passes it on; in a process that is started within, it is held back.

    A mask alone would not do, because another thread, of which a kernel has many, may take the
    signal.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        with held():
            yield noted
        return
    earlier = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        with held():
            yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if earlier is None else earlier)


def environment(environ: Mapping[str, str], told: Path) -> dict[str, str]:
    """The launcher's environment: this process's own, with the same yolods.

    Args:
        told: see `Launcher`.
    """
    found = {**environ, CALLER: str(told), "PYTHONSAFEPATH": "1"}
    folder = Path(yolods.__file__).parents[1]
    # An installed package is found anyway, and its neighbours should not come before the library.
    if folder.name not in ("site-packages", "dist-packages"):
        rest = environ.get("PYTHONPATH")
        found["PYTHONPATH"] = os.pathsep.join([str(folder), *([rest] if rest else [])])
    # A notebook's backend draws into its cells, and is not installed on other hosts.
    if environ.get("MPLBACKEND", "").startswith("module://"):
        found["MPLBACKEND"] = "Agg"
    return found


def _terminal(stream: TextIO | None) -> int | None:
    """The descriptor of a terminal; None: the stream is none."""
    with suppress(OSError, ValueError, AttributeError):
        stream.flush()
        return stream.fileno() if stream.isatty() else None
    return None


def _show_output(text: str) -> None:
    _show(sys.stdout, text)


def _show(stream: TextIO | None, text: str) -> None:
    """Print; a screen that is gone ends nothing."""
    with suppress(OSError, ValueError, AttributeError):
        stream.write(text)
        stream.flush()
