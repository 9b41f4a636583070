"""Log routing: all lines go to the run's train.log; the screen gets yolods' lines and warnings.

    python logging of        rank 0: train.log   rank 0: screen    rank r: logs/rank<r>.log, screen
    yolods                   INFO and up         INFO and up       WARNING and up, `[rank r host]`
    DeepSpeed, ultralytics   INFO and up         WARNING and up    WARNING and up
    torch                    WARNING and up      torch shows them  torch shows them; file as well
    py.warnings              all                 none              none; file as well

A rank's own file is created by a line of yolods or an error, and not by warnings of libraries
alone.

Output of libraries that print, or write to file descriptor 2 from C++, is not captured: replacing
`print` has more costs than benefits.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections import deque
from pathlib import Path
from typing import TextIO

CLEAR_LINE = "\r\033[K"
LOG_FILE = "train.log"
"""Of rank 0, in the run's folder."""
HELD_RECORDS = 100
"""Number of warnings that a rank other than 0 keeps until its file is created."""
FILE_ONLY = "yolods_file_only"
"""The attribute (`extra={FILE_ONLY: True}`) of a record that the screen has already shown."""

_CHATTY = ("DeepSpeed", "ultralytics")
_FILE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def quiet_dependencies(level: int = logging.INFO) -> None:
    """Remove the screen handlers of DeepSpeed and ultralytics, and let their records propagate to
    yolods' handlers.

    It works before and after their import, and may be called again. If a library sets up its logger
    after this call, the first record that passes corrects this; until then its INFO lines follow
    the library's own level.
    """
    for name in _CHATTY:
        logger = logging.getLogger(name)
        for old in [f for f in logger.filters if isinstance(f, _Adopt)]:
            logger.removeFilter(old)
        logger.addFilter(_Adopt(level))
        _adopt(logger, level)


def _adopt(logger: logging.Logger, level: int) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(level)


class _Adopt(logging.Filter):
    """Lets every record pass, and adopts its logger: filters run before handlers are looked up."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        logger = logging.getLogger(record.name)
        if logger.handlers or not logger.propagate:
            _adopt(logger, self.level)
        return True


class _Screen(logging.StreamHandler):
    """Prints to the current sys.stdout, and first clears the line of a progress bar."""

    def __init__(self, prefix: str, own_level: int) -> None:
        logging.Handler.__init__(self)
        self.prefix = prefix
        self.own_level = own_level

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, FILE_ONLY, False) or record.name == "py.warnings":
            return False
        ours = record.name.split(".")[0] == "yolods"
        return record.levelno >= (self.own_level if ours else logging.WARNING)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            library = record.name.split(".")[0]
            origin = "" if library == "yolods" else f" ({library})"
            text = f"{record.levelname.lower()}{origin}: {text}"
        text = f"{self.prefix}{text}"
        return f"{CLEAR_LINE}{text}" if self.stream.isatty() else text

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore a lost screen, which must not end a run; the file has the line."""


class _File(logging.FileHandler):
    """Appends to a file that the first record creates with its folder; reports a fault once."""

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(path, encoding="utf-8", errors="replace", delay=True)
        self.setLevel(level)
        self.setFormatter(logging.Formatter(_FILE_FORMAT))
        self._reported = False

    def _open(self) -> TextIO:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._reported:
            self._reported = True
            print(
                f"warning: {self.baseFilename} cannot be written: {sys.exc_info()[1]}",
                file=sys.stderr,
            )


class _Reluctant(_File):
    """A file that only a line of yolods or an error creates.

    Warnings of libraries wait until then, and are dropped if nothing follows.
    """

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(path, level)
        self._held: deque[logging.LogRecord] | None = deque(maxlen=HELD_RECORDS)

    def emit(self, record: logging.LogRecord) -> None:
        if self._held is None:
            super().emit(record)
            return
        self._held.append(record)
        if record.levelno >= logging.ERROR or record.name.split(".")[0] == "yolods":
            held, self._held = self._held, None
            for each in held:
                super().emit(each)


def _torch_loggers() -> list[logging.Logger]:
    """torch's loggers whose records do not reach the root logger (about 50 in torch 2.13).

    torch gives them handlers of its own. `torch.__trace` is excluded, because torch traces every
    compilation if it has a handler.
    """
    known = logging.getLogger().manager.loggerDict.values()
    of_torch = [
        logger
        for logger in known
        # Some names are only placeholders, for parents that nobody has created.
        if isinstance(logger, logging.Logger) and logger.name.split(".")[0] == "torch"
    ]
    return [
        logger for logger in of_torch if not logger.propagate and logger.name != "torch.__trace"
    ]


class Log:
    """The log handlers of one run; close() removes them."""

    def __init__(self, run_dir: Path | None, rank: int, host: str) -> None:
        level = logging.INFO if rank == 0 else logging.WARNING
        self.path: Path | None = None
        self._screen = _Screen("" if rank == 0 else f"[rank {rank} {host}] ", level)
        self._screen.setFormatter(logging.Formatter("%(message)s"))
        self._handlers: list[logging.Handler] = [self._screen]
        if run_dir is not None:
            self.path = run_dir / (LOG_FILE if rank == 0 else f"logs/rank{rank}.log")
            self._handlers.append((_File if rank == 0 else _Reluctant)(self.path, level))
        # The root logger, so that lines of every library arrive here, whatever its name is.
        root = logging.getLogger()
        for handler in self._handlers:
            root.addHandler(handler)
        self._torch_loggers = _torch_loggers() if run_dir is not None else []
        for logger in self._torch_loggers:
            logger.addHandler(self._handlers[-1])
        self._root_level = root.level
        root.setLevel(level)
        quiet_dependencies(level)
        logging.captureWarnings(True)

    def close(self) -> None:
        """Remove the handlers and close the file; a second call does nothing."""
        if not self._handlers:
            return
        for handler in self._handlers:
            for logger in (logging.getLogger(), *self._torch_loggers):
                logger.removeHandler(handler)
            with contextlib.suppress(OSError):  # a full disk was reported when the line was written
                handler.close()
        self._handlers = []
        logging.getLogger().setLevel(self._root_level)
        logging.captureWarnings(False)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def add_line(run_dir: Path, text: str) -> None:
    """Append an error to a run's train.log from a process that is none of its ranks."""
    file = _File(run_dir / LOG_FILE, logging.ERROR)
    file.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, text, None, None))
    with contextlib.suppress(OSError):  # a full disk was reported when the line was written
        file.close()


def open_log(run_dir: Path | None, rank: int = 0, host: str | None = None) -> Log:
    """Route this process's log lines as in the table at the top of this module.

    A log that exists (a resumed run) is appended to. Call this after `import deepspeed` if all of
    its INFO lines are wanted; before works too, see quiet_dependencies.

    Args:
        run_dir: the run's folder; None: screen only.
        rank: this process's rank.
        host: name of this host; None: look it up.
    """
    return Log(run_dir, rank, host or socket.gethostname().split(".")[0])
