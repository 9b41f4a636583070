"""Finds the checkpoint to load: the newest one that is intact to the byte. All ranks reach the same
result.

A checkpoint's manifest.json contains the size and checksum of each of its files, and a checksum of
itself. A folder without a manifest is skipped and logged like any other damage: the checkpoint may
have lost files, and nothing else could tell. A search begins with the checkpoint that `latest`
names, so that a user can set a run back by hand; if `latest` is missing, or names nothing or a
damaged checkpoint, the others follow, newest first.
"""

from __future__ import annotations

import json
import re
import socket
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolods.checkpoint.checked_files import FileRecord, damage
from yolods.checkpoint.names import LATEST, PROGRESS

if TYPE_CHECKING:
    from yolods.distributed.world import Ranks

MANIFEST = "manifest.json"
ENDED, STOPPED = "ended", "stopped"
"""Files in `checkpoints/`: where a run finished, or was stopped on request. Neither exists while it
runs, nor after a crash."""
OLD = "-old"
NAME = re.compile(rf"step(\d+)({OLD})?")
"""step00000128; step00000128-old exists only while that step is saved a second time."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """The result of a search."""

    folder: Path | None
    """The newest intact checkpoint, or None."""
    skipped: tuple[str, ...]
    """One line per damage found on the way: the file and what is wrong with it."""


def render_manifest(files: Mapping[str, FileRecord]) -> str:
    """The text of manifest.json. It is a function of the records, so that any change shows."""
    content = {name: asdict(record) for name, record in sorted(files.items())}
    return json.dumps(
        {"files": content, "crc32": f"{zlib.crc32(json.dumps(content).encode()):08x}"}, indent=1
    )


def step_of(name: str) -> tuple[int, bool]:
    """The sort key of a checkpoint's name: its step, and whether it is not an `-old` one."""
    step, old = NAME.fullmatch(name).groups()
    return int(step), old is None


@dataclass(frozen=True)
class End:
    """Where and how a run ended; the content of `ended` or `stopped`."""

    run: str
    """The run's identity."""
    start: str
    """The identity of the command that ended it."""
    step: int
    """The last optimizer step."""
    status: int
    """Exit status: 0, or that of a request to stop."""


def end_of(folder: Path) -> End | None:
    """How the run in `folder` (`checkpoints/`) ended; None if it did not."""
    for name in (ENDED, STOPPED):
        with suppress(OSError, ValueError, TypeError, RecursionError):
            return End(**json.loads((folder / name).read_text(encoding="utf-8")))
    return None


def names_in(folder: Path, run: str | None = None) -> list[str]:
    """The names of checkpoints in `checkpoints/`, oldest first, without those being written.

    Args:
        run: the run's identity, to omit checkpoints of other runs; None: all.
    """
    try:
        names = [each.name for each in folder.iterdir() if NAME.fullmatch(each.name)]
    except OSError:
        return []
    return sorted(
        (name for name in names if run is None or run_of(folder / name) in (run, None)), key=step_of
    )


def run_of(checkpoint: Path) -> str | None:
    """The identity of the run that wrote a checkpoint; None if it cannot be read."""
    try:
        return str(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")).get("run", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def nothing_in(folder: Path) -> str:
    """The message about a `checkpoints/` without an intact checkpoint."""
    return f"{folder}: no intact checkpoint to resume from; start again without --resume"


def newest_in(folder: Path) -> Path | None:
    """The newest intact checkpoint in a run's `checkpoints/`, or None. Local."""
    return search(folder, single_process()).folder


def single_process() -> Ranks:
    """The `Ranks` of a process that is not part of a run."""
    import torch  # here, because the launcher uses this file and must not wait for torch

    from yolods.distributed.world import Ranks

    return Ranks(0, 1, 0, socket.gethostname(), torch.device("cpu"))


def search(folder: Path, ranks: Ranks, run: str | None = None) -> FoundCheckpoint:
    """Find the newest intact checkpoint in `checkpoints/`. A collective; the same on every rank.

    Args:
        run: identity of the run that wrote it; None: any.
    """
    # Rank 0 lists the folder for all: on a file server other hosts may see another state of it.
    names, skipped = ranks.from_main(
        _own(folder, run, *_candidates(folder)) if ranks.is_main else ([], [])
    )
    for name in names:
        faults = faults_of(folder / name, ranks)
        if not faults:
            return FoundCheckpoint(folder / name, tuple(skipped))
        skipped += faults
    return FoundCheckpoint(None, tuple(skipped))


def _own(
    folder: Path, run: str | None, names: list[str], skipped: list[str]
) -> tuple[list[str], list[str]]:
    """The candidates without those of other runs, which are added to `skipped`."""
    own = set(names_in(folder, run))
    lines = [
        f"{folder / name}: written by another run ({run_of(folder / name) or 'without a name'}), "
        f"not by {run or 'this'}"
        for name in names
        if name not in own
    ]
    return [name for name in names if name in own], [*skipped, *lines]


def _candidates(folder: Path) -> tuple[list[str], list[str]]:
    """Checkpoint names in the order to try them, and a line if `latest` does not name the newest.

    Args:
        folder: the run's `checkpoints/`.
    """
    names = names_in(folder)[::-1]
    latest = folder / LATEST
    if not names:
        return [], []
    try:
        # A damaged file may hold any bytes, of any length.
        first = latest.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return names, [f"{latest}: missing"]
    except OSError as error:
        return names, [f"{latest}: cannot be read: {error.strerror or error}"]
    if first not in names and first + OLD in names:
        first += OLD  # the save was killed between its two renames
    if first not in names:
        return names, [f"{latest}: names {first[:40]!r}, which is not there"]
    # There is a newer one if the run was killed before it updated `latest`, or a user set it back.
    notes = [f"{latest}: names {first}, so {names[0]} is skipped"] if first != names[0] else []
    return [first, *(name for name in names if name != first)], notes


def faults_of(folder: Path, ranks: Ranks) -> list[str]:
    """One line per damage in a checkpoint. A collective; the same on every rank.

    Each rank reads a share of the files: its own, if the layout is unchanged.
    """
    files, fault, host = ranks.from_main(
        (*_read_manifest(folder), ranks.host) if ranks.is_main else None
    )
    if fault is not None:
        return [f"{folder / MANIFEST}: {fault}"]
    where = "" if ranks.host == host else f" (seen from {ranks.host})"
    found = [(name, damage(folder / name, files[name])) for name in _share(list(files), ranks)]
    told = ranks.to_main([f"{folder / name}: {what}{where}" for name, what in found if what])
    return ranks.from_main([line for lines in told for line in lines])


def _share(names: list[str], ranks: Ranks) -> list[str]:
    """This rank's files: rank<r>.pt goes to rank r modulo the world size, small files to rank 0."""
    numbers = {
        name: int(digits.group(1)) if (digits := re.fullmatch(r"rank(\d+)\.pt", name)) else 0
        for name in names
    }
    return [name for name, number in numbers.items() if number % ranks.size == ranks.rank]


def _read_manifest(folder: Path) -> tuple[dict[str, FileRecord], str | None]:
    """The records by file name, or what is wrong with the manifest."""
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return {}, "missing, so the checkpoint cannot be verified"
    except OSError as error:
        return {}, f"cannot be read: {error.strerror or error}"
    try:
        files = {name: FileRecord(**record) for name, record in json.loads(text)["files"].items()}
        if render_manifest(files).encode() == text:
            return files, None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # a flipped bit may yield any JSON
    return {}, f"damaged, its {len(text)} bytes are not what was written"
