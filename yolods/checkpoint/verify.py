"""Which checkpoint to load: the newest of which every byte is what was written. All ranks reach one verdict.

A checkpoint's manifest.json has the size and checksum of each of its files, and a checksum of itself. A folder without
one is left out by name, as after any other damage: it may be a checkpoint that lost a file, and nothing else
could tell. `latest` is where a search begins, so a run may be set back by hand; where it is lost or names nothing, or
something damaged, the others follow, newest first.
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
"""The file in `checkpoints/` that says where a run has come to its end, or was stopped on request; neither is there
while it goes on, or if it was cut short."""
OLD = "-old"
NAME = re.compile(rf"step(\d+)({OLD})?")
"""step00000128; step00000128-old is on the disk for the moment in which that step is saved a second time."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """What a search came to."""

    folder: Path | None
    """The newest whole checkpoint."""
    skipped: tuple[str, ...]
    """A line for each damage that was passed on the way: the file, and what is wrong with it."""


def render_manifest(files: Mapping[str, FileRecord]) -> str:
    """The text of manifest.json. One list of files has one text, so any change of a manifest shows."""
    content = {name: asdict(record) for name, record in sorted(files.items())}
    return json.dumps({"files": content, "crc32": f"{zlib.crc32(json.dumps(content).encode()):08x}"}, indent=1)


def step_of(name: str) -> tuple[int, bool]:
    """Orders names of checkpoints: the step, and whether it is the last that was saved of that step."""
    step, old = NAME.fullmatch(name).groups()
    return int(step), old is None


@dataclass(frozen=True)
class End:
    """Where and how a run has ended; the text of `ended` or `stopped`."""

    run: str
    """Which run."""
    start: str
    """Which command has brought it there."""
    step: int
    """After which optimizer step."""
    status: int
    """Exit status: 0, or that of a request to stop."""


def end_of(folder: Path) -> End | None:
    """How the run in `folder` (`checkpoints/`) has ended; None: it has not."""
    for name in (ENDED, STOPPED):
        with suppress(OSError, ValueError, TypeError, RecursionError):
            return End(**json.loads((folder / name).read_text(encoding="utf-8")))
    return None


def names_in(folder: Path, run: str | None = None) -> list[str]:
    """What looks like a checkpoint in `checkpoints/`, oldest first; nothing that is being written.

    Args:
        run: identity; those that another run has written are left out. None: none are.
    """
    try:
        names = [each.name for each in folder.iterdir() if NAME.fullmatch(each.name)]
    except OSError:
        return []
    return sorted((name for name in names if run is None or run_of(folder / name) in (run, None)), key=step_of)


def run_of(checkpoint: Path) -> str | None:
    """The identity of the run that has written a checkpoint; None: it cannot be read."""
    try:
        return str(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")).get("run", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def nothing_in(folder: Path) -> str:
    """The line about `checkpoints/` without a whole checkpoint."""
    return f"{folder}: no whole checkpoint to resume from; start afresh, without --resume"


def newest_in(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's `checkpoints/`, or None. In one process."""
    return search(folder, single_process()).folder


def single_process() -> Ranks:
    """The ranks of a process that is no part of a run."""
    import torch  # here, for a launcher asks this file how a run has ended, and does without

    from yolods.distributed.world import Ranks

    return Ranks(0, 1, 0, socket.gethostname(), torch.device("cpu"))


def search(folder: Path, ranks: Ranks, run: str | None = None) -> FoundCheckpoint:
    """Find the newest whole checkpoint in `checkpoints/`. A collective; the same on every rank.

    Args:
        run: identity of the run that has written it; None: any.
    """
    names, skipped = ranks.from_main(_own(folder, run, *_candidates(folder)) if ranks.is_main else ([], []))
    for name in names:
        faults = faults_of(folder / name, ranks)
        if not faults:
            return FoundCheckpoint(folder / name, tuple(skipped))
        skipped += faults
    return FoundCheckpoint(None, tuple(skipped))


def _own(folder: Path, run: str | None, names: list[str], skipped: list[str]) -> tuple[list[str], list[str]]:
    """Candidates without those of other runs; each of these is named among what is skipped."""
    own = set(names_in(folder, run))
    lines = [
        f"{folder / name}: written by another run ({run_of(folder / name) or 'without a name'}), not by {run or 'this'}"
        for name in names
        if name not in own
    ]
    return [name for name in names if name in own], [*skipped, *lines]


def _candidates(folder: Path) -> tuple[list[str], list[str]]:
    """Names in the order in which to try them, and what is wrong with `latest`."""
    names = names_in(folder)[::-1]
    latest = folder / LATEST
    if not names:
        return [], []
    try:
        named = latest.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return names, [f"{latest}: missing"]
    except OSError as error:
        return names, [f"{latest}: cannot be read: {error.strerror or error}"]
    if named not in names and named + OLD in names:
        named += OLD  # a kill came between its being put aside and the new one's taking its place
    if named not in names:
        return names, [f"{latest}: names {named[:40]!r}, which is not there"]
    # Written but not named yet when the run was killed, or left behind by a run that was set back.
    newer = [f"{latest}: names {named}, so {names[0]} is left out"] if named != names[0] else []
    return [named, *(name for name in names if name != named)], newer


def faults_of(folder: Path, ranks: Ranks) -> list[str]:
    """Lines about every damage in a checkpoint; none if it is whole. A collective; the same on every rank.

    Each rank reads a share of the files, its own among them where the layout is the one that wrote them.
    """
    files, fault, host = ranks.from_main((*_read_manifest(folder), ranks.host) if ranks.is_main else None)
    if fault is not None:
        return [f"{folder / MANIFEST}: {fault}"]
    where = "" if ranks.host == host else f" (seen from {ranks.host})"
    found = [(name, damage(folder / name, files[name])) for name in _share(list(files), ranks)]
    told = ranks.to_main([f"{folder / name}: {what}{where}" for name, what in found if what])
    return ranks.from_main([line for lines in told for line in lines])


def _share(names: list[str], ranks: Ranks) -> list[str]:
    """rank<r>.pt goes to rank r, modulo their number; small files to rank 0."""
    numbers = {name: int(digits.group(1)) if (digits := re.fullmatch(r"rank(\d+)\.pt", name)) else 0 for name in names}
    return [name for name, number in numbers.items() if number % ranks.size == ranks.rank]


def _read_manifest(folder: Path) -> tuple[dict[str, FileRecord], str | None]:
    """Files by name, or what is wrong with the manifest."""
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return {}, "missing, so nothing here can be verified"
    except OSError as error:
        return {}, f"cannot be read: {error.strerror or error}"
    try:
        files = {name: FileRecord(**record) for name, record in json.loads(text)["files"].items()}
        if render_manifest(files).encode() == text:
            return files, None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # a flipped bit makes any JSON of it
        pass
    return {}, f"damaged, its {len(text)} bytes are not what was written"
