"""What a rank failed with, left in the run's folder for the launcher, which hears of a number only.

A restart needs to know whether it was the same exception as before, which would come again and again, and whether it
was a port that another process had taken meanwhile, which a start with another port mends.
"""

from __future__ import annotations

import json
import os
import re
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from yolods.errors import UserError

NOTES = "logs/failed-*.json"
"""In a run's folder."""
CONNECTION = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket|gloo|nccl|timed? ?out|"
    r"peer|DistStoreError|DistNetworkError|DistBackendError|no route to host",
    re.IGNORECASE,
)
"""Signs that an exception tells of another rank and not of this one."""
PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use|taken the same port", re.IGNORECASE)
LONGEST = 4000
"""Characters of an exception's text that are compared."""


@dataclass(frozen=True)
class Failure:
    """An exception that has ended a rank. Equal ones are the same fault."""

    type: str
    text: str
    """Without addresses in memory, which are others each time."""
    place: str
    """Where it was raised: file:line."""

    @property
    def port_taken(self) -> bool:
        """Whether the port, on which ranks meet, was another process'."""
        return PORT_TAKEN.search(self.text) is not None

    @property
    def of_another(self) -> bool:
        """Whether it tells of a rank that is gone, and not of a fault of this one's."""
        return CONNECTION.search(f"{self.type}: {self.text}") is not None


def is_connection(error: BaseException) -> bool:
    """Whether an exception tells of another rank, which this one has lost."""
    known = isinstance(error, RuntimeError | OSError) and not isinstance(error, UserError)
    return known and _failure(error).of_another


@contextmanager
def noted_in(run_dir: Path | None, start: str | None) -> Iterator[None]:
    """Within: what comes through is noted, unless it is a user's mistake or a request to stop.

    Args:
        run_dir: the run's folder; None: there is no launcher that would read it.
        start: identity of the start.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if run_dir is not None and start:
            with suppress(OSError):
                file = run_dir / NOTES.replace("*", f"{socket.gethostname()}-{os.getpid()}")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"start": start, **asdict(_failure(error))}), encoding="utf-8")
        raise


def read_failures(run_dir: Path, start: str) -> set[Failure]:
    """What ranks of a start have failed with, and forget it: it was of one try. Where some have only lost another, what
    the others say."""
    found: set[Failure] = set()
    for file in run_dir.glob(NOTES):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            note = json.loads(file.read_text(encoding="utf-8"))
            file.unlink()
            if note.pop("start") == start:
                found.add(Failure(**note))
    with suppress(OSError):  # unless there is a log in it
        (run_dir / NOTES).parent.rmdir()
    return {each for each in found if each.port_taken or not each.of_another} or found


def _failure(error: BaseException) -> Failure:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(error))[:LONGEST]
    return Failure(type(error).__name__, text, place)
