"""Where log lines go: all of them into the run's train.log, to the screen only ours and what warns.

    python logging of        rank 0: train.log   rank 0: screen    rank r: logs/rank<r>.log, screen
    yolods                   INFO and up         INFO and up       WARNING and up, as `[rank r host] ...`
    DeepSpeed, ultralytics   INFO and up         WARNING and up    WARNING and up
    torch                    WARNING and up      torch shows them  torch shows them (in the file, too)
    py.warnings              all                 none              none (in the file, too)

A rank's own file appears with a line of ours or with an error; warnings of libraries alone make none.

A library that prints, or writes to file descriptor 2 from C++, is not caught: replacing `print` costs more than it
hides.
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
HELD_RECORDS = 100
"""Warnings that a rank other than 0 remembers, in case that there will be a file for them."""
FILE_ONLY = "yolods_file_only"
"""Name of the attribute (`extra={FILE_ONLY: True}`) of a record that the screen has already seen."""

_CHATTY = ("DeepSpeed", "ultralytics")
_FILE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def quiet_dependencies(level: int = logging.INFO) -> None:
    """Take DeepSpeed's and ultralytics' own screen handlers away and let their records travel to ours.

    Works before and after they are imported, and again at any time. Where a library sets its logger up after this call,
    its first record to pass puts that right; its INFO lines until then follow the library's own level.
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
    """Lets every record pass; its use is that a logger asks its filters before it looks for handlers."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        logger = logging.getLogger(record.name)
        if logger.handlers or not logger.propagate:
            _adopt(logger, self.level)
        return True


class _Screen(logging.StreamHandler):
    """Prints on whatever sys.stdout is at that moment, without smearing over a progress bar."""

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
        """A screen that is gone must not end a run; the file has the line."""


class _File(logging.FileHandler):
    """Appends to a file that appears, with its folder, at the first record; a full disk is reported once."""

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
            print(f"warning: {self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


class _Reluctant(_File):
    """A file that appears only with something of ours, or an error: what a library warns of waits until then, and is
    dropped where nothing follows."""

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
    """torch's loggers that show their records themselves and let none travel to the root (torch 2.13: about 50).

    `torch.__trace` is left out: torch takes a handler there for a wish to trace every compilation.
    """
    known = logging.getLogger().manager.loggerDict.values()
    found = [one for one in known if isinstance(one, logging.Logger) and one.name.split(".")[0] == "torch"]
    return [logger for logger in found if not logger.propagate and logger.name != "torch.__trace"]


class Log:
    """The handlers of one run; close() takes them away again."""

    def __init__(self, run_dir: Path | None, rank: int, host: str) -> None:
        level = logging.INFO if rank == 0 else logging.WARNING
        self.path: Path | None = None
        self._screen = _Screen("" if rank == 0 else f"[rank {rank} {host}] ", level)
        self._screen.setFormatter(logging.Formatter("%(message)s"))
        self._handlers: list[logging.Handler] = [self._screen]
        if run_dir is not None:
            self.path = run_dir / ("train.log" if rank == 0 else f"logs/rank{rank}.log")
            self._handlers.append((_File if rank == 0 else _Reluctant)(self.path, level))
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
        """Take the handlers away and close the file; a second call does nothing."""
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


def open_log(run_dir: Path | None, rank: int = 0, host: str | None = None) -> Log:
    """Route this process's log lines as the table at the top of this module says.

    `run_dir` None: screen only. Later lines are appended to a log that is there already (a resumed run). Call it after
    `import deepspeed` where its INFO lines are wanted from the first one on; before works too, see quiet_dependencies.
    """
    return Log(run_dir, rank, host or socket.gethostname().split(".")[0])
