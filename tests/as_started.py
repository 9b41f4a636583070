"""Turns a fork of a Python with many imports into a freshly started `python -m MODULE ...`.

    remember()      in the fork server, after its imports: note the state that a fork restores
    become(..)      in a fork: run the command and exit as it does; never returns
    ForkedPopen     `subprocess.Popen` that forks: Forking in a fork, whose launchers and ranks are
                    forks again, and tests.forks.Popen in the tests
    go_on_as(..)    `os.execvpe` in a fork, which goes on as the other command in the same process

A start by exec takes 3 s of CPU for each of two launchers and 5 s for each rank, all of it for
imports; a fork takes 0.2 s.

The same as after exec: streams, descriptors, working directory, environment, session, signals,
`preexec_fn`, `sys.argv`, `__main__`, the import path with `sitecustomize`; modules of yolods and of
DeepSpeed's launcher, which are loaded again; logging, warnings, hooks, random numbers, exit
handlers. A process with threads is not forked.

Different from exec, so that tests which depend on it start the real command:

- /proc/PID/cmdline has the command's words separated by spaces, and only the beginning of a long
  command.
- The first second: imports take no time, start no thread and cannot fail, and a signal finds no
  half-imported module.
- Libraries have read the variables in `IMPORT_TIME` from the tests' environment. glibc's allocator
  and the size of torch's thread pool do not follow their variables, and variables that libraries
  set at import (LD_LIBRARY_PATH, KINETO_LOG_LEVEL and others) are not set.
- All ranks iterate over sets of strings in the same order: they share the hash seed, unlike real
  ranks.
- Options of the interpreter other than -u, and its handling of closed or broken streams.
- A process that goes on as another command shows what it had printed and not yet written, and
  leaves the peak of its memory to that command.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import io
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

IMPORT_TIME = (
    *(
        "OMP_NUM_THREADS",
        "DS_ACCELERATOR",
        "CUDA_VISIBLE_DEVICES",
        "YOLO_OFFLINE",
        "YOLO_AUTOINSTALL",
    ),
    *("YOLO_CONFIG_DIR", "MPLCONFIGDIR", "LC_ALL", "LANG", "PYTHONWARNINGS", "PYTHONHASHSEED"),
)
"""Variables that Python, torch, DeepSpeed and ultralytics read once, at start or import."""
ROOM_FOR_WORDS = "." * 3500
"""An argument of the fork server that reserves space: a fork writes its command over it."""
AFRESH = ("yolods", "deepspeed.launcher", "sitecustomize")
"""Modules that a fork loads again, with their submodules."""


@dataclass(frozen=True)
class Command:
    """The command `python [-u] -m module words`."""

    module: str
    words: tuple[str, ...]
    unbuffered: bool

    def __str__(self) -> str:
        return " ".join(
            [sys.executable, *(["-u"] if self.unbuffered else []), "-m", self.module, *self.words]
        )


def command_of(args: Any) -> Command | None:
    """The command for `subprocess.Popen`, if a fork can replace it; else None."""
    if isinstance(args, str | bytes | os.PathLike):
        return None
    python, *words = map(os.fspath, args)
    options = []
    while words and words[0] in ("-u", "-B"):
        options.append(words.pop(0))
    if (
        os.path.abspath(python) != os.path.abspath(sys.executable)
        or len(words) < 2
        or words[0] != "-m"
    ):
        return None
    return Command(words[1], tuple(words[2:]), "-u" in options)


def is_alone() -> bool:
    """Whether this process has one thread, so that no lock of another stays locked in a fork."""
    return len(os.listdir("/proc/self/task")) == 1


@dataclass
class _Remembered:
    """The state of the fork server after its imports."""

    path: list[str]
    """sys.path without the working directory and PYTHONPATH."""
    filters: list[Any]
    """The filters of warnings."""
    hooks: dict[tuple[Any, str], Any]
    loggers: dict[str, dict[str, Any]] = field(default_factory=dict)


_remembered: _Remembered | None = None


def remember() -> None:
    """Note the state that every fork restores; call it in the fork server after its imports."""
    global _remembered
    beside = {os.getcwd(), *_entries(os.environ)}
    hooks = (
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
        (warnings, "showwarning"),
    )
    _remembered = _Remembered(
        [entry for entry in sys.path if entry and os.path.abspath(entry) not in beside],
        list(warnings.filters),
        {(module, name): getattr(module, name) for module, name in hooks},
        {logger.name: _state(logger) for logger in _loggers()},
    )
    atexit._clear()


def _entries(environ: Mapping[str, str]) -> list[str]:
    return [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _loggers() -> list[logging.Logger]:
    named = logging.root.manager.loggerDict.values()
    return [logging.root, *(each for each in named if isinstance(each, logging.Logger))]


def _state(logger: logging.Logger) -> dict[str, Any]:
    lists = {"handlers": list(logger.handlers), "filters": list(logger.filters)}
    return {
        **lists,
        "level": logger.level,
        "propagate": logger.propagate,
        "disabled": logger.disabled,
    }


class ForkedPopen(subprocess.Popen, ABC):
    """`subprocess.Popen` that forks for `python -m MODULE` and uses exec for everything else."""

    @abstractmethod
    def _fork(self, command: Command, streams: tuple[int, int, int], **settings: Any) -> int:
        """Fork and return the process id; arguments as for `become`."""

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, *rest: Any
    ) -> None:
        pass_fds, cwd, env, _, _, shell, *pipes = rest[:12]
        command = None if shell or executable or pass_fds or not close_fds else command_of(args)
        if command is None:
            return super()._execute_child(args, executable, preexec_fn, close_fds, *rest)
        stdin, _, _, stdout, _, stderr = pipes
        settings = {"cwd": cwd, "env": env, "new_session": rest[17], "prepare": preexec_fn}
        self.pid = self._fork(command, (stdin, stdout, stderr), **settings)
        self._child_created = True
        self._close_pipe_fds(*pipes)


class Forking(ForkedPopen):
    """The `ForkedPopen` of a forked process, which forks itself."""

    def _fork(self, command: Command, streams: tuple[int, int, int], **settings: Any) -> int:
        assert is_alone(), f"this process has threads, and cannot be forked for {command}"
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # None of our handlers runs in the fork.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if not (pid := os.fork()):
            become(command, streams, mask=mask, **settings)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid


def become(
    command: Command,
    streams: Sequence[int],
    *,
    cwd: Any = None,
    env: Mapping[Any, Any] | None = None,
    mask: set[signal.Signals] | None = None,
    new_session: bool = False,
    prepare: Callable[[], None] | None = None,
) -> NoReturn:
    """Run a command in this fork and end it.

    Args:
        streams: descriptors that become standard input, output and error; -1 keeps the present one.
        env: the whole environment; None keeps the present one.
        mask: signals to block.
        prepare: `preexec_fn`.
    """
    code: int | None = 1
    try:
        _take(streams)
        if cwd is not None:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(
                {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
            )
        if new_session:
            os.setsid()
        _forget_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask or ())
        _show(str(command))
        if prepare is not None:
            prepare()
        _put_back(command.unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")))
        subprocess.Popen = Forking  # type: ignore[misc]
        os.execvpe = go_on_as
        sys.argv = [command.module, *command.words]
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = _status(leaving)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = None
    except BaseException:
        with suppress(BaseException):
            sys.excepthook(*sys.exc_info())
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BaseException):
                stream.flush()
        if code is None:  # exit by SIGINT, as Python does after Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit((code or 0) & 255)  # never return into the parent's code


_execvpe = os.execvpe


def go_on_as(file: str, args: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """`os.execvpe` of a forked process."""
    if (command := command_of(args)) is None:
        _execvpe(file, args, env)
    assert is_alone(), f"this process has threads, and cannot go on as {command}"
    become(command, (-1, -1, -1), env=dict(env), mask=signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def _show(text: str) -> None:
    """Make `text` this process's /proc/PID/cmdline.

    If the last byte of the arguments is not zero, Linux shows a text up to the first zero
    (fs/proc/base.c, for BSD's setproctitle).
    """
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        # Fields arg_start and arg_end, 48 and 49 in proc(5).
        start, end = map(int, file.read().rpartition(")")[2].split()[45:47])
    shown = text.encode(errors="surrogateescape")[: end - start - 2]
    ctypes.memmove(start, shown.ljust(end - start - 1, b"\0") + b".", end - start)


def _status(leaving: SystemExit) -> int:
    if leaving.code is None or isinstance(leaving.code, int):
        return leaving.code or 0
    print(leaving.code, file=sys.stderr)
    return 1


def _take(streams: Sequence[int]) -> None:
    """Make these descriptors the standard streams, and close all others."""
    copies = [-1 if source == -1 else os.dup(source) for source in streams]
    for place, copy in enumerate(copies):
        if copy != -1:
            os.dup2(copy, place)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _forget_signals() -> None:
    """Reset Python's signal handlers, as exec does; ignored signals stay ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )


def _put_back(unbuffered: bool) -> None:
    """Restore everything in the interpreter that parent processes may have changed."""
    assert _remembered is not None, "this process was not forked from the fork server"
    _put_streams_back(unbuffered)
    for name in [name for name in sys.modules if _is_afresh(name)]:
        del sys.modules[name]
    here = [] if os.environ.get("PYTHONSAFEPATH") else [os.getcwd()]
    sys.path[:] = [*here, *map(os.path.abspath, _entries(os.environ)), *_remembered.path]
    importlib.invalidate_caches()
    warnings.filters[:] = _remembered.filters
    warnings._filters_mutated()
    for (module, name), hook in _remembered.hooks.items():
        setattr(module, name, hook)
    for logger in _loggers():
        for name, value in _remembered.loggers.get(
            logger.name, _state(logging.Logger("fresh"))
        ).items():
            setattr(logger, name, list(value) if isinstance(value, list) else value)
    logging.disable(logging.NOTSET)
    logging.root.manager._clear_cache()
    tempfile.tempdir = None
    atexit._clear()
    _draw_anew()
    with suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


def _is_afresh(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in AFRESH)


def _put_streams_back(unbuffered: bool) -> None:
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        lines = not unbuffered and (stream is sys.stderr or os.isatty(stream.fileno()))
        stream.reconfigure(line_buffering=lines, write_through=unbuffered)


def _draw_anew() -> None:
    """Seed all generators from the machine's entropy, as in a new process."""
    import numpy
    import torch

    random.seed()
    numpy.random.seed()
    torch.seed()
