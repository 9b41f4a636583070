"""The index of a data set: what a first scan, a cached start and a label cost, and what they hold.

    python benchmarks/index.py --old /path/to/an/earlier/checkout --record benchmarks/index.md

100,000 images are made on the spot, and an index of ten million rows. Every case is a process of
its own; the first scans take turns with those of the earlier checkout. Exit status 1 if a limit is
not met. Six minutes on two cores, and 3 GB below `--work`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {
    "cached start of the rank that compares, s CPU": 0.3,
    "cached start of another rank, s CPU": 0.3,
    "private memory of a worker after a label of every image, MiB": 2.0,
    "10 million rows: open, seek to the middle of epoch 3, 64 labels, s CPU": 1.0,
    "10 million rows: private memory for that, MiB": 20.0,
}
"""What a case may take at most."""
FASTER = 3.0
"""What a first scan has to be of the earlier checkout's speed."""
METHOD = f"""\
- *first scan*: every image is opened and every label file parsed, with an empty index; wall time on
  {{cores}} cores, in turn with the earlier checkout.
- *cached start*: from the yaml to a data set that can be read, with its fingerprint, in a process
  that has imported everything; its own CPU time and that of its threads. One rank of a host
  compares the files with the index, the others open it.
- *private memory*: pages that the process has written (`Private_Dirty`), more than before.
- *limits*: a first scan {FASTER:g} times as fast as the earlier checkout's; the others are in the
  table.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    began, date = time.monotonic(), datetime.now(timezone.utc)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="yolods-index-", dir=options.work) as work:
        machine = describe(cores)
        lines, status = measured(options, Path(work), len(cores))
    lines += [
        "",
        f"Run of {date:%Y-%m-%d %H:%M} UTC, {time.monotonic() - began:.0f} s:",
        "",
        f"    {shlex.join(['python', 'benchmarks/index.py', *words])}",
        *("", *machine, ""),
    ]
    print("\n".join(lines))
    if options.record:
        options.record.write_text("\n".join(lines), encoding="utf-8")
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--old", type=Path, metavar="DIR", help="an earlier checkout to compare with")
    made.add_argument("--images", type=int, default=100_000, metavar="N", help="(default 100000)")
    made.add_argument("--rows", type=int, default=10_000_000, metavar="N", help="(default 1e7)")
    made.add_argument("--rounds", type=int, default=2, metavar="N", help="first scans (default 2)")
    made.add_argument("--work", type=Path, metavar="DIR", help="where files are made (default TMP)")
    made.add_argument("--record", type=Path, metavar="MD", help="write everything to this file")
    return made


def measured(options: argparse.Namespace, work: Path, cores: int) -> tuple[list[str], int]:
    """The record's text, and the exit status."""
    yaml = work / "set/large.yaml"
    case("make", work, ROOT, yaml, options.images)
    trees = {"now": ROOT} | ({"earlier": options.old.resolve()} if options.old else {})
    scans: dict[str, list[float]] = {name: [] for name in trees}
    for turn in range(options.rounds):
        for name, tree in list(trees.items())[:: 1 if turn % 2 else -1]:
            cache = work / f"cache-{name}"
            shutil.rmtree(cache, ignore_errors=True)
            scans[name].append(case(f"first_scan_{name}", work, tree, yaml, cache)["seconds"])
    found = case("cached_start", work, ROOT, yaml, work / "cache-now")
    found |= case("rows", work, ROOT, work / "rows", options.rows)
    lines = ["# The index of a data set", "", METHOD.format(cores=cores), *_scan_table(scans), ""]
    lines += [f"| {options.images:,} images | measured | limit |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {found[name]:.3f} | {limit:g} |" for name, limit in LIMITS.items()]
    missed = [name for name, limit in LIMITS.items() if found[name] > limit]
    if options.old and median(scans["earlier"]) < FASTER * median(scans["now"]):
        missed.append("first scan")
    verdict = f"Not met: {'; '.join(missed)}" if missed else "Every limit is met."
    return [*lines, "", verdict], int(bool(missed))


def _scan_table(scans: dict[str, list[float]]) -> list[str]:
    rows = ["| first scan | s, median (all) | times as fast |", "| --- | ---: | ---: |"]
    slowest = max(median(seconds) for seconds in scans.values())
    for name, seconds in scans.items():
        every = ", ".join(f"{one:.1f}" for one in seconds)
        ratio = slowest / median(seconds)
        rows.append(f"| {name} | {median(seconds):.1f} ({every}) | {ratio:.2f} |")
    return rows


def case(name: str, work: Path, tree: Path, *arguments: object) -> dict[str, float]:
    """What a function of `index_cases` measures in a process of its own, on this checkout."""
    script = ROOT / "benchmarks/index_cases.py"
    done = subprocess.run(
        [sys.executable, script, name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=work,
        stdout=subprocess.PIPE,
        timeout=900,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
