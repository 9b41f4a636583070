"""Kills, power cuts, damage and full disks for checkpoints: does one that is verified load, and \
is the damage named?

    python benchmarks/checkpoint_faults.py --record benchmarks/checkpoint_faults.md

The trials are those of tests/faults/checkpoints.py, of which tests/faults/test_checkpoints.py plays
a part.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from tests.faults.checkpoints import (
    COUNTED,
    DAMAGES,
    DISK_BYTES,
    FILES,
    KINDS,
    MODES,
    NoDiskHere,
    Outcome,
    calls_of_a_save,
    damaged,
    killed,
    on_a_small_disk,
    trial,
)

HARMS, DISKS = 10, 30
"""Of each kind of damage to each kind of file; of each kind of disk."""
POWER_CUTS = 3
"""At each call."""
HASHED_BYTES = 1 << 28

METHOD = f"""\
- A store with four checkpoints (random trials: three or four), of an engine of 20,000 numbers, in \
one process. A save
  that is to die runs in a forked child, where each call of `os` counts that is one of \
{", ".join(COUNTED)}.
- *before*, *half*, *after*: SIGKILL before the n-th call, after half of what it was to write, \
after it. *power cut*:
  SIGKILL after it, and some or all of what was not flushed is taken away: contents of files, \
names in folders.
- *truncated*, *flipped bit*, *missing*: done to one file, at a random place; in most trials the \
next one or two
  checkpoints are damaged as well, in any of their files.
- *full disk*: a tmpfs of {DISK_BYTES >> 20} MiB that is filled but for less than a checkpoint. \
*read-only*: the same,
  mounted read-only, with leftovers of a kill or without.
- Right is a trial if the newest undamaged checkpoint that `latest` allows for is loaded with the \
weights that it was
  saved with, every damaged file passed on the way is named in a line of its own, a save that \
failed says so in one
  line with the reason, and the next save works, loads without a word and leaves no leftovers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Try what the command line says. Returns the exit status: 1 if anything was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--trials", type=int, default=200, metavar="N", help="random ones (default 200)"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    options = made.parse_args(words)
    began, date, about = (
        time.monotonic(),
        datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        describe([0]),
    )
    speeds = [_speed(name, work) for name, work in _checksums().items()]
    calls = calls_of_a_save()
    rows: list[str] = []
    wrong: list[str] = []
    for name, outcomes in _matrix(calls, options.trials):
        try:
            row, faults = _row(name, outcomes)
        except NoDiskHere as error:
            row, faults = f"| {name} | 0 | skipped | {error} |", [f"{name}: not tried: {error}"]
        rows.append(row)
        wrong += faults
        print(row, flush=True)
    text = "\n".join(
        [
            *(f"# Faults of checkpoints, {date}", ""),
            *(f"    {shlex.join(['python', 'benchmarks/checkpoint_faults.py', *words])}", ""),
            *about,
            *("", METHOD, "", f"A save makes {calls} calls: points at which it can be killed.", ""),
            *(
                "| what happens | trials | right | among them |",
                "| --- | ---: | ---: | --- |",
                *rows,
            ),
            *("", f"{len(wrong)} faults. {time.monotonic() - began:.0f} s."),
            *(f"- {each}" for each in wrong),
            *("", f"Checksums of {HASHED_BYTES >> 20} MiB on one core: {', '.join(speeds)}."),
        ]
    )
    print(text)
    if options.record:
        options.record.write_text(text + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _matrix(calls: int, trials: int) -> Iterator[tuple[str, Iterable[Outcome]]]:
    """Names of rows, and what is tried for each."""
    for mode in MODES:
        rounds = POWER_CUTS if mode == "power cut" else 1  # what it takes is drawn
        yield (
            f"a save ends, {mode}: at each call",
            (killed(each % calls, mode, each) for each in range(rounds * calls)),
        )
    for mode in ("before", "power cut"):
        # Only renames tell it from another, and they come last.
        last = range(calls // 2, calls)
        yield (
            f"the same step is saved again, {mode}",
            (killed(each, mode, each, again=True) for each in last),
        )
    for how in DAMAGES:
        for file in FILES:
            yield f"{file} {how}", (damaged(how, seed, file) for seed in range(HARMS))
    for kind in ("full disk", "read-only"):
        yield kind, (on_a_small_disk(kind, seed) for seed in range(DISKS))
    yield "random", (trial(seed, calls) for seed in range(trials))


def _row(name: str, outcomes: Iterable[Outcome]) -> tuple[str, list[str]]:
    """A row of the table, and lines about what was wrong."""
    tried = list(outcomes)
    faults = [f"{name}: {each.what}: {fault}" for each in tried for fault in each.wrong]
    among = Counter(each.kind for each in tried) if name == "random" else {}
    late = sum(each.what.startswith("no kill") for each in tried)
    notes = [f"{kind} {among[kind]}" for kind in KINDS if kind in among]
    notes += [f"{late} at a call that was not reached"] if late else []
    right = sum(not each.wrong for each in tried)
    return f"| {name} | {len(tried)} | {right} | {', '.join(notes)} |", faults


def _checksums() -> dict[str, Callable[[bytes], object]]:
    return {
        "CRC-32": zlib.crc32,
        "SHA-256": lambda data: hashlib.sha256(data).digest(),
        "BLAKE2b": lambda data: hashlib.blake2b(data).digest(),
    }


def _speed(name: str, work: Callable[[bytes], object]) -> str:
    """Best of three, for other work on the machine only ever makes it slower."""
    data, best = os.urandom(1 << 20) * (HASHED_BYTES >> 20), float("inf")
    for _ in range(3):
        began = time.perf_counter()
        work(data)
        best = min(best, time.perf_counter() - began)
    return f"{name} {HASHED_BYTES / best / 1e9:.2f} GB/s"


if __name__ == "__main__":
    sys.exit(main())
