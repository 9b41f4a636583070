"""Starts runs on cores of their own, ends them with everything they started, and reads what their
drivers saw."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.cases import Case, Settings, command, hyper
from benchmarks.observer import Seen, Task

LIMIT = 3600.0
"""Seconds after which a run counts as hung."""


def carry_out(
    case: Case,
    settings: Settings,
    cores: list[int],
    *,
    kind: str,
    epochs: int,
    name: str,
    imgsz: int,
    seed: int = 0,
) -> list[Seen]:
    """Run a case, as many copies at once as it asks for.

    Args:
        cores: what may be used; a copy gets the next `ranks` x threads of them.
        kind: as `Task.kind`.
        name: unique among the runs of this benchmark.

    Raises:
        RuntimeError: a run failed, hung or saw nothing; with the end of what it printed.
    """
    each = case.ranks * settings.threads
    chosen = hyper(kind, seed, map_epochs=epochs)
    started = []
    with ExitStack() as stack:
        for copy in range(case.copies):
            label = f"{name}-{copy}" if case.copies > 1 else name
            out, log = settings.work / f"{label}.json", settings.work / f"{label}.log"
            words, variables = command(
                case, settings, epochs=epochs, imgsz=imgsz, hyper=chosen, name=label
            )
            task = Task(str(out), time.time(), kind, epochs, settings.threads)
            place = cores[copy * each : (copy + 1) * each]
            process = stack.enter_context(
                _Process(words, {**variables, **task.environment()}, place, log)
            )
            started.append((process, out, log))
        for process, out, log in started:
            status = process.wait()
            if status or not out.is_file():
                raise RuntimeError(f"{name} ended with {status}; it printed last:\n{_end_of(log)}")
    shutil.rmtree(settings.work / "runs", ignore_errors=True)
    return [Seen.read(out) for _, out, _ in started]


class _Process:
    """A process in a session of its own; leaving the context ends it and its children."""

    def __init__(
        self, words: list[str], variables: dict[str, str], cores: list[int], log: Path
    ) -> None:
        def place() -> None:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)

        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                words,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=place,
            )

    def wait(self) -> int:
        try:
            return self._process.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return -1

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _end_of(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
