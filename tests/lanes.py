"""`./launch.sh test`: the suite in two lanes side by side, two runs of pytest that share a queue of
files.

    front    begins with the other folders, whose tests start many processes and wait for them
    back     begins with tests/unit, most of which computes in one process

Each takes the longest files first, and those of the other lane when it has none left. What is left
at the end is short, so neither lane waits for the other.
`--fast` runs the tests of tests/unit that are neither `slow` nor marked `process`. Further
arguments are passed to pytest. The times of a run are stored in .pytest_cache, from which the next
run estimates its duration; the first run estimates it from tests/seconds.json and the speed of this
machine.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
FAST = ("tests/unit", "-m", "not slow and not process")
LIMIT_SECONDS = 40 * 60.0
"""Time limit of the suite, after which the lanes are ended and the suite fails."""
GRACE_SECONDS = 60.0
"""Time for a lane to end on request, in which its tests end their processes."""
TELL_SECONDS = 15.0
"""Time between lines of progress without a terminal."""
NEW_FILE_SECONDS = 3.0
"""Estimate for a file without a record."""
SLOWEST = 15
CACHE, REFERENCE = Path(".pytest_cache/lanes.json"), Path("tests/seconds.json")
REFERENCE_CORES = 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@dataclass(frozen=True)
class Record:
    """The times of a run."""

    files: Mapping[str, float]
    """Seconds of each file's tests, while the other lane was running too."""
    seconds: float
    """Wall time of the run."""
    loop: float
    """The result of `calibration` on that machine."""

    @classmethod
    def read(cls, file: Path, kind: str) -> Record | None:
        """Read the record of this kind; None if there is none."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8"))[kind])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, file: Path, kind: str) -> None:
        """Write the record, and keep that of the other kind."""
        kept: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            kept = json.loads(file.read_text(encoding="utf-8"))
        kept[kind] = {
            "files": dict(sorted(self.files.items())),
            "seconds": round(self.seconds),
            "loop": self.loop,
        }
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def calibration() -> float:
    """Seconds of a fixed computation on one core, the best of three."""
    best = float("inf")
    for _ in range(3):
        began, data = time.perf_counter(), b"yolods"
        for _ in range(150_000):
            data = hashlib.sha256(data).digest()
        best = min(best, time.perf_counter() - began)
    return round(best, 4)


def expected(root: Path, kind: str, loop: float) -> tuple[Record, str]:
    """The expected times here, and the text that says where they come from."""
    cores = len(os.sched_getaffinity(0))
    if (last := Record.read(root / CACHE, kind)) is not None:
        return last, "as the last run did here"
    if (reference := Record.read(root / REFERENCE, kind)) is not None:
        factor = loop / reference.loop * max(1.0, REFERENCE_CORES / cores)
        files = {file: seconds * factor for file, seconds in reference.files.items()}
        why = (
            f"estimated by a run on two cores elsewhere, and by this machine's {cores} at "
            f"{1 / factor:.2g} x its speed"
        )
        return Record(files, reference.seconds * factor, loop), why
    return Record({}, 0.0, loop), "nobody knows how long: no run has been recorded"


def files_of(root: Path, kind: str, seconds: Mapping[str, float]) -> dict[str, list[str]]:
    """The files with which each lane begins, the longest first."""
    folder = root / "tests" / "unit" if kind == "fast" else root / "tests"
    found = sorted(file.relative_to(root).as_posix() for file in folder.rglob("test_*.py"))
    found.sort(key=lambda file: -seconds.get(file, NEW_FILE_SECONDS))
    return {
        "front": [file for file in found if "/unit/" not in file],
        "back": [file for file in found if "/unit/" in file],
    }


@dataclass
class Lane:
    """A running pytest."""

    name: str
    process: subprocess.Popen[bytes]
    events: Path
    log: Path
    read: int = 0
    """Number of bytes of the events that were read."""
    at: str = "collecting"
    """The current test."""

    def news(self) -> list[dict[str, Any]]:
        """Events since the last call."""
        with open(self.events, "rb") as file:
            file.seek(self.read)
            whole, _, _ = file.read().rpartition(b"\n")
        self.read += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines()]


@dataclass
class Progress:
    """The finished and the remaining tests."""

    record: Record
    began: float = field(default_factory=time.monotonic)
    collected: dict[str, int] = field(default_factory=dict)
    """Number of tests per file."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each finished test."""
    outcomes: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def take_in(self, event: dict[str, Any]) -> None:
        """Add an event of a lane."""
        if "collected" in event:
            self.collected = event["collected"]
        elif "ended" in event:
            self.seconds[event["ended"]] = event["seconds"]
            self.outcomes[event["outcome"]] += 1
            self.failed += [event["ended"]] if event["outcome"] == "failed" else []

    def by_file(self) -> dict[str, float]:
        """Seconds per file, for files that have begun."""
        found: Counter[str] = Counter()
        for test, seconds in self.seconds.items():
            found[test.partition("::")[0]] += seconds
        return dict(found)

    def share(self) -> float:
        """The finished share of the work, weighted by the recorded seconds."""
        each = {
            file: max(0.01, self._expected(file)) / count for file, count in self.collected.items()
        }
        done = Counter(test.partition("::")[0] for test in self.seconds)
        whole = sum(each[file] * count for file, count in self.collected.items())
        return (
            sum(each.get(file, 0.0) * count for file, count in done.items()) / whole
            if whole
            else 0.0
        )

    def _expected(self, file: str) -> float:
        return self.record.files.get(file, NEW_FILE_SECONDS)

    def left(self) -> float | None:
        """Estimated remaining seconds, from the record and increasingly from this run; or None."""
        gone, share = time.monotonic() - self.began, self.share()
        if share < 0.02:
            return max(0.0, self.record.seconds - gone) if self.record.seconds else None
        ours = gone / share - gone
        theirs = self.record.seconds * (1 - share) if self.record.seconds else ours
        return share * ours + (1 - share) * theirs

    def line(self, lanes: Sequence[Lane]) -> str:
        """The line of progress."""
        left = self.left()
        about = "" if left is None else f", about {span(left)} left"
        bad = f", {len(self.failed)} failed" if self.failed else ""
        counts = f"{len(self.seconds)} of {sum(self.collected.values()) or '?'} tests{bad}"
        places = "  ".join(
            f"{lane.name}: {lane.at.removeprefix('tests/').partition('::')[0]}" for lane in lanes
        )
        return (
            f"{self.share():4.0%}  {span(time.monotonic() - self.began)} gone{about}  {counts}  "
            f"{places}"
        )


def span(seconds: float) -> str:
    """A duration such as "12 min 40 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class Screen:
    """Prints permanent lines, and on a terminal one line of progress that is rewritten."""

    def __init__(self) -> None:
        self._rewrites, self._told = sys.stdout.isatty(), 0.0

    def say(self, text: str) -> None:
        """Print a permanent line."""
        print(f"\r\033[K{text}" if self._rewrites else text, flush=True)

    def progress(self, text: str) -> None:
        """Show the latest progress."""
        if self._rewrites:
            width = os.get_terminal_size(sys.stdout.fileno()).columns
            print(f"\r\033[K{text[: width - 1]}", end="", flush=True)
        elif time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            print(text, flush=True)


class Asked(Exception):
    """A signal asked the suite to end."""


def _asked(number: int, frame: Any) -> None:
    raise Asked(number)


def main(words: Sequence[str], root: Path = ROOT) -> int:
    """Run the suite or its fast part; returns 0 if every collected test passed or was skipped."""
    kind, rest = ("fast", words[1:]) if words[:1] == ["--fast"] else ("whole", words)
    loop = calibration()
    record, why = expected(root, kind, loop)
    time_it_takes = f"about {span(record.seconds)}, " if record.seconds else ""
    what = "the tests of tests/unit that start no process" if kind == "fast" else "all tests"
    screen = Screen()
    screen.say(f"yolods: {what}, in two lanes; {time_it_takes}{why}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _asked)
    # Processes that a dead lane leaves become children of this process, which kills them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    progress = Progress(record)
    with tempfile.TemporaryDirectory(prefix="yolods-lanes-") as folder:
        lanes = _start(
            Path(folder),
            root,
            files_of(root, kind, record.files),
            [*(FAST if kind == "fast" else ()), *rest],
        )
        try:
            late = _follow(lanes, progress, screen)
        except Asked as asked:
            screen.say("yolods: asked to end; both lanes end what they have started")
            _end(lanes)
            return 128 + int(asked.args[0])
        _end(lanes)
        _follow(lanes, progress, screen)
        status = _conclude(lanes, progress, screen, late)
    if not rest and progress.seconds and len(progress.seconds) == sum(progress.collected.values()):
        Record(progress.by_file(), time.monotonic() - progress.began, loop).keep(root / CACHE, kind)
    _keep_failed(root, progress)
    return status


def _start(
    folder: Path, root: Path, files: Mapping[str, Sequence[str]], words: Sequence[str]
) -> list[Lane]:
    queue = folder / "queue"
    every = [file for each in files.values() for file in each]
    queue.write_text(json.dumps({"files": every, **files}), encoding="utf-8")
    lanes = []
    for end in files:
        events, log = folder / f"{end}.events", folder / f"{end}.log"
        events.touch()
        # The lanes would overwrite each other's cache.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "tests.lane_plugin",
        ]
        command += [f"--lane-queue={queue}", f"--lane-end={end}", f"--lane-events={events}", *words]
        with open(log, "wb") as screen:
            process = subprocess.Popen(
                command,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
                preexec_fn=_end_with_the_parent,
            )
        lanes.append(Lane(end, process, events, log))
    return lanes


def _end_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def _follow(lanes: Sequence[Lane], progress: Progress, screen: Screen) -> bool:
    """Follow the lanes until both have ended; True if they took too long."""
    while True:
        running = [lane for lane in lanes if lane.process.poll() is None]
        for lane in lanes:
            for event in lane.news():
                progress.take_in(event)
                lane.at = event.get("begun", lane.at)
                if event.get("outcome") == "failed":
                    screen.say(f"FAILED {event['ended']}")
            if lane not in running:
                status = lane.process.returncode
                lane.at = f"ended with status {status}" if _broke(lane) else "done"
        if not running:
            return False
        if time.monotonic() - progress.began > LIMIT_SECONDS:
            return True
        screen.progress(progress.line(lanes))
        time.sleep(0.5)


def _end(lanes: Sequence[Lane]) -> None:
    """End the lanes and all processes that they started."""
    for lane in lanes:
        if lane.process.poll() is None:
            lane.process.send_signal(signal.SIGINT)
    for lane in lanes:
        if lane.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                lane.process.wait(GRACE_SECONDS)
    left = psutil.Process().children(recursive=True)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)
    for lane in lanes:
        lane.process.wait()


def _conclude(lanes: Sequence[Lane], progress: Progress, screen: Screen, late: bool) -> int:
    """Show failed, skipped and slow tests; returns the exit status."""
    reports = [
        re.sub(r"\x1b\[[\d;]*m", "", lane.log.read_text(encoding="utf-8", errors="replace"))
        for lane in lanes
    ]
    for lane, report in zip(lanes, reports, strict=True):
        if lane.process.returncode:
            begin = re.search(r"^=+ (ERRORS|FAILURES) =+$", report, re.M)
            screen.say(report[begin.start() :] if begin else report[-6000:])
    skipped = [line for report in reports for line in re.findall(r"^SKIPPED .*$", report, re.M)]
    for line in sorted(skipped):
        screen.say(line)
    screen.say(f"The slowest of {len(progress.seconds)} tests:")
    for test, seconds in sorted(progress.seconds.items(), key=lambda each: -each[1])[:SLOWEST]:
        screen.say(f"{seconds:7.1f} s  {test}")
    for test in progress.failed:
        screen.say(f"FAILED {test}")
    ended, missing = "", sum(progress.collected.values()) - len(progress.seconds)
    if late:
        ended = f"; it took more than {span(LIMIT_SECONDS)} and was ended"
    elif broken := [
        f"{lane.name} ended with status {lane.process.returncode}" for lane in lanes if _broke(lane)
    ]:
        ended = f"; {', '.join(broken)}"
    if missing or not progress.collected:
        ended += f"; {missing or 'all'} tests were not run"
    counts = ", ".join(
        f"{progress.outcomes[each]} {each}" for each in ("passed", "failed", "skipped")
    )
    screen.say(f"yolods: {counts} in {span(time.monotonic() - progress.began)}{ended}")
    return 1 if ended or any(lane.process.returncode for lane in lanes) else 0


def _broke(lane: Lane) -> bool:
    """Whether pytest ended by another fault than a failed test."""
    return lane.process.returncode not in (0, 1)


def _keep_failed(root: Path, progress: Progress) -> None:
    """Store the failed tests for `./launch.sh test --lf`, as pytest's cache does."""
    file = root / ".pytest_cache/v/cache/lastfailed"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict.fromkeys(progress.failed, True), indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
