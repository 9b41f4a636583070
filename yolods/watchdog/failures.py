"""Records of the exceptions that ended ranks, in the run's folder for the launcher.

The launcher itself sees only an exit status. A restart needs to know whether the exception is the
same as before, because it would occur again, and whether another process had taken the port,
because a start on another port then succeeds.
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
"""Pattern of the records in a run's folder."""
CONNECTION = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket|gloo|nccl|timed? ?out|"
    r"peer|DistStoreError|DistNetworkError|DistBackendError|no route to host",
    re.IGNORECASE,
)
"""Signs that an exception is the consequence of another rank's failure."""
PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use|taken the same port", re.IGNORECASE)
LONGEST = 4000
"""Characters of an exception's text that are compared."""


@dataclass(frozen=True)
class Failure:
    """An exception that ended a rank. Equal objects are the same fault."""

    type: str
    text: str
    """Without memory addresses, which differ each time."""
    place: str
    """Where it was raised: file:line."""

    @property
    def port_taken(self) -> bool:
        """Whether another process had taken the port of the rendezvous."""
        return PORT_TAKEN.search(self.text) is not None

    @property
    def of_another(self) -> bool:
        """Whether another rank's failure caused it."""
        return CONNECTION.search(f"{self.type}: {self.text}") is not None


def is_connection(error: BaseException) -> bool:
    """Whether an exception means that this rank has lost the connection to another one."""
    known = isinstance(error, RuntimeError | OSError) and not isinstance(error, UserError)
    return known and _failure(error).of_another


@contextmanager
def noted_in(run_dir: Path | None, start: str | None) -> Iterator[None]:
    """Record any exception raised within, except a user error or a request to stop.

    KeyboardInterrupt and SystemExit are no `Exception` and pass unrecorded.


    Args:
        run_dir: the run's folder; None: no launcher would read the record.
        start: identity of the start.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # No record of user errors above: their exit status 2 already prevents a restart.
        if run_dir is not None and start:
            with suppress(OSError):
                # One file per process, because ranks of all hosts write to the same folder at once.
                file = run_dir / NOTES.replace("*", f"{socket.gethostname()}-{os.getpid()}")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(
                    json.dumps({"start": start, **asdict(_failure(error))}), encoding="utf-8"
                )
        raise


def read_failures(run_dir: Path, start: str) -> set[Failure]:
    """Read and delete the failures of a start: they belong to one attempt.

    If some ranks only lost another rank, the result contains only the other ranks' failures.
    """
    found: set[Failure] = set()
    for file in run_dir.glob(NOTES):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            note = json.loads(file.read_text(encoding="utf-8"))
            file.unlink()
            if note.pop("start") == start:
                found.add(Failure(**note))
    with suppress(OSError):  # not empty: it also holds logs
        (run_dir / NOTES).parent.rmdir()
    # A rank that lost another one raises as a consequence. The cause is what the lost rank raised,
    # unless it was killed and left no record.
    return {each for each in found if each.port_taken or not each.of_another} or found


def _failure(error: BaseException) -> Failure:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(error))[:LONGEST]
    return Failure(type(error).__name__, text, place)
