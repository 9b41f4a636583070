"""Runs the parts of a GPU session one after the other, each in a process of its own under a limit
of its own.

    part process (benchmarks.gpu_part)        here
    notes each item, a JSON line -----------> reads them when the process has ended or was ended
                                              writes results.json and results.md, after every part

What a part noted before its time ran out counts; the part itself is then a line. No torch in here.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_page import page

ROOT = Path(__file__).resolve().parent.parent
TAIL_LINES = 12
"""Of a part's screen, kept in the results where it did not end well."""
PRETENDED_LIMIT = 600.0
"""Seconds for any part on a pretended device, which is a CPU that others use as well."""


@dataclass(frozen=True)
class Part:
    """One thing that is looked at."""

    name: str
    """Its word on the command line."""
    function: str
    """`module:function`, which gets a `Job`."""
    seconds: float
    """The most that it may take on a GPU."""
    title: str
    """What it looks at."""


@dataclass
class Session:
    """What all parts share."""

    out: Path
    """Folder of results.json, results.md and each part's screen."""
    work: Path
    """Folder for what parts write besides."""
    pretend: bool
    """Tiny sizes on a CPU that stands in for the GPU."""
    data: Path | None = None
    """The data yaml of BCCD."""
    about: dict[str, Any] = field(default_factory=dict)
    """Command, time and commit."""
    runner: str = "benchmarks.gpu_part"
    """Module that carries out a part."""


def plan(parts: Sequence[Part]) -> list[str]:
    """The whole budget in lines, before anything runs."""
    lines = [f"part {part.name}: at most {part.seconds:.0f} s ({part.title})" for part in parts]
    return [*lines, f"all parts: at most {sum(part.seconds for part in parts):.0f} s"]


def conduct(parts: Sequence[Part], session: Session) -> dict[str, Any]:
    """Run all parts; the results as they stand are written after each. Ctrl-C or SIGTERM ends the
    part under way."""
    results: dict[str, Any] = {**session.about, "pretended": session.pretend, "parts": []}
    for part in parts:
        results["parts"].append(
            {"name": part.name, "title": part.title, "limit": part.seconds, "status": "not run"}
        )
    _write(results, session.out)
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for part, entry in zip(parts, results["parts"], strict=True):
            print(f"part {part.name}: at most {part.seconds:.0f} s ...", flush=True)
            entry.update(_carry_out(part, session))
            _write(results, session.out)
            print(
                f"  {entry['status']}, {len(entry['items'])} items, {entry['seconds']:.1f} s",
                flush=True,
            )
            if entry["status"] == "interrupted":
                break
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return results


def _carry_out(part: Part, session: Session) -> dict[str, Any]:
    screen, notes = session.out / f"{part.name}.log", session.work / f"{part.name}.jsonl"
    notes.unlink(missing_ok=True)
    limit = PRETENDED_LIMIT if session.pretend else part.seconds
    words = [
        sys.executable,
        "-m",
        session.runner,
        part.function,
        "--notes",
        str(notes),
        "--seconds",
        str(limit),
    ]
    words += ["--work", str(session.work / part.name)]
    words += ["--pretend"] * session.pretend + (
        [] if session.data is None else ["--data", str(session.data)]
    )
    began, cpu = time.monotonic(), _cpu_seconds()
    with screen.open("wb") as sink:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=_environment(session.pretend),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        except KeyboardInterrupt:
            code = 130
        finally:
            end(process)
    items = read_notes(notes)
    entry = {"status": _status(code, items), "seconds": time.monotonic() - began, "items": items}
    entry["cpu_seconds"] = _cpu_seconds() - cpu
    if entry["status"] not in ("done", "skipped"):
        entry["screen"] = screen.read_text(encoding="utf-8", errors="replace").splitlines()[
            -TAIL_LINES:
        ]
    return entry


def _cpu_seconds() -> float:
    """Of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(pretend: bool) -> dict[str, str]:
    """This process' own, with this checkout first on the path, and without a GPU where one is
    pretended."""
    search = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "PYTHONUNBUFFERED": "1"}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return {**found, **hidden} if pretend else found


def _status(code: int | None, items: Sequence[dict[str, Any]]) -> str:
    if code is None:
        return "ran out of time"
    if code == 130:
        return "interrupted"
    if code:
        return f"died ({code})"
    if any("failed" in item or item["doubts"] for item in items):
        return "with faults"
    return "skipped" if items and all("skipped" in item for item in items) else "done"


def read_notes(file: Path) -> list[dict[str, Any]]:
    """The items that a part has noted; a line that it was killed over is left out."""
    items: list[dict[str, Any]] = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                items.append(json.loads(line))
    return items


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started, sessions of their own included; nothing where all has
    ended."""
    members = []
    with suppress(psutil.NoSuchProcess):
        members = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _write(results: dict[str, Any], out: Path) -> None:
    """Whole or not at all: what ends this process may come at any time."""
    for name, text in (
        ("results.json", json.dumps(results, indent=1)),
        ("results.md", page(results)),
    ):
        partial = out / f".{name}.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / name)
