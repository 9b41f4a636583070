"""Runs many commands one after the other in one process (tests.forks), each with its screen kept
apart."""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from unittest import mock

from tests.forks import forked
from yolods.cli import main


def once_training_begins(action: Callable[[], None]) -> mock._patch:
    """Do something after the data has been checked and before the first batch is loaded."""
    from yolods.training.loop import Run

    fit = Run.fit

    def delayed(run: Run) -> None:
        action()
        fit(run)

    return mock.patch.object(Run, "fit", delayed)


def before_the_run(text: str | None) -> mock._patch:
    """The disturbance of a case: "vanish FILE", "vanish-all FOLDER", "disk-left BYTES",
    "evaluation-fails" or none."""
    word, _, what = (text or "").partition(" ")
    if word == "vanish":
        return once_training_begins(lambda: Path(what).unlink())
    if word == "vanish-all":
        return once_training_begins(lambda: shutil.rmtree(what))
    if word == "disk-left":
        return mock.patch(
            "yolods.training.setup.run_files.shutil.disk_usage",
            lambda _: SimpleNamespace(free=int(what)),
        )
    if word == "disk-fills":
        full = mock.Mock(side_effect=OSError(28, "No space left on device"))
        return once_training_begins(lambda: mock.patch("torch.save", full).start())
    return mock.patch.dict({})


@contextmanager
def screen_into(folder: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to files, C++'s writing included."""
    kept = [os.dup(number) for number in (1, 2)]
    for number, name in ((1, "out"), (2, "err")):
        with open(folder / name, "wb") as file:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def run(case: dict, folder: Path) -> dict:
    """One case: exit status (1 where an exception came through, as from Python itself) and both
    streams."""
    started = time.perf_counter()
    with screen_into(folder), mock.patch.dict(os.environ, case.get("env") or {}):
        try:
            with before_the_run(case.get("before")):
                code = main(case["words"])
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            mock.patch.stopall()
    streams = {name: (folder / name).read_text(errors="replace") for name in ("out", "err")}
    return {"code": code, "seconds": time.perf_counter() - started, **streams}


def results_of(*rows: list[dict], folder: Path, timeout: float) -> dict[str, dict]:
    """Run rows of cases side by side, the cases of each in order; what `run` found, by the cases'
    names.

    Args:
        rows: cases are dictionaries of name, words, env and before. What a row needs of another is
            not there in time.
        folder: for files of our own.
        timeout: seconds for all.

    Raises:
        AssertionError: they were not done in time, or ended the process.
    """
    screen = folder / "driver"
    call = {"rows": rows, "folder": str(folder)}
    code = forked("tests.faults.in_process:run_all", call, screen=screen, timeout=timeout)
    assert code == 0, f"the cases ended with {code}:\n{screen.read_text(errors='replace')[-3000:]}"
    found = [
        json.loads((folder / f"row{place}" / "results.json").read_text())
        for place in range(len(rows))
    ]
    return {name: result for row in found for name, result in row.items()}


def run_all(rows: list[list[dict]], folder: str) -> int:
    """In a process of its own: fork one for each row; 1 where one did not end well."""
    started = []
    for place, row in enumerate(rows):
        if not (pid := os.fork()):
            _run_row(row, Path(folder, f"row{place}"))
        started.append(pid)
    return int(any(os.waitpid(pid, 0)[1] for pid in started))


def _run_row(cases: list[dict], folder: Path) -> NoReturn:
    code = 1
    try:
        folder.mkdir()
        # DeepSpeed keeps its process group for the life of a process and can join no second one.
        with mock.patch("yolods.distributed.world.leave"):
            results = {case["name"]: run(case, folder) for case in cases}
        (folder / "results.json").write_text(json.dumps(results))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
