"""pytest's part of tests.lanes: a lane takes files from a shared queue and reports events.

--lane-queue FILE     JSON: all files, and what is left of those with which each lane begins
--lane-end END        this lane: "front" or "back"
--lane-events FILE    the events so far, one JSON per line
"""

from __future__ import annotations

import fcntl
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TextIO

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that tests.lanes passes to each lane."""
    group = parser.getgroup("lanes")
    group.addoption("--lane-queue", type=Path, required=True)
    group.addoption("--lane-end", choices=("front", "back"), required=True)
    group.addoption("--lane-events", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Replace pytest's own test loop by the lane."""
    queue, end = config.getoption("--lane-queue"), config.getoption("--lane-end")
    config.pluginmanager.register(Lane(queue, end, config.getoption("--lane-events")))


@contextmanager
def _locked(queue: Path) -> Iterator[TextIO]:
    """The queue's file, which no other lane reads or writes meanwhile.

    A lane once read it without the lock while the other one had emptied it to write it anew, and
    ended before its first test.
    """
    with open(queue, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def files_in(queue: Path) -> list[str]:
    """All files of the queue, taken or not."""
    with _locked(queue) as file:
        return json.load(file)["files"]


def take(queue: Path, end: str) -> str | None:
    """Take the next file of a lane, or of the other one when it has none left; None if there is
    none."""
    with _locked(queue) as file:
        state = json.load(file)
        left = state[end] or state["back" if end == "front" else "front"]
        if not left:
            return None
        taken = left.pop(0)
        file.seek(0)
        file.truncate()
        json.dump(state, file)
        return taken


class Lane:
    """A run of pytest over the files that one lane takes."""

    def __init__(self, queue: Path, end: str, events: Path) -> None:
        self._queue, self._end = queue, end
        self._events = events.open("a", buffering=1, encoding="utf-8")
        self._seconds: dict[str, float] = defaultdict(float)
        self._outcomes: dict[str, set[str]] = defaultdict(set)

    def _tell(self, **event: Any) -> None:
        self._events.write(f"{json.dumps(event)}\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run tests as pytest does, but in the queue's order of files."""
        if session.testsfailed:
            raise session.Interrupted(f"{session.testsfailed} errors while tests were collected")
        by_file: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in session.items:
            by_file[item.nodeid.partition("::")[0]].append(item)
        unknown = by_file.keys() - set(files_in(self._queue))
        if unknown:
            raise pytest.UsageError(f"these files are in no lane: {', '.join(sorted(unknown))}")
        self._tell(collected={file: len(items) for file, items in by_file.items()})
        # One item ahead: pytest tears down the fixtures that the next item does not share.
        for item, following in pairwise(chain(self._items(by_file), [None])):
            assert item is not None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
        return True

    def _items(self, by_file: dict[str, list[pytest.Item]]) -> Iterator[pytest.Item | None]:
        while (file := take(self._queue, self._end)) is not None:
            yield from by_file.get(file, [])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Report that a test begins."""
        self._tell(begun=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the reports of setup, call and teardown; after the last one, report the test."""
        self._seconds[report.nodeid] += report.duration
        self._outcomes[report.nodeid].add(report.outcome)
        if report.when == "teardown":
            outcomes = self._outcomes.pop(report.nodeid)
            outcome = next(each for each in ("failed", "skipped", "passed") if each in outcomes)
            self._tell(
                ended=report.nodeid,
                outcome=outcome,
                seconds=round(self._seconds.pop(report.nodeid), 3),
            )
