"""Leaks between splits: are near-duplicates found and other images not, and how long does it take?

    python benchmarks/leaks.py --record benchmarks/leaks.md

BCCD's published split, the demo, changed copies, generated videos split in several ways, drawings
on white; then the times. Exit status 1 if a split is warned of that should not be, or the reverse.
Three minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from benchmarks.leaks_parts import METHOD, Opened, Part, copied, drawings, published, times, videos
from yolods.data.demo import ensure_demo

ROOT = Path(__file__).resolve().parent.parent
BCCD = Path("shared/data/bccd/bccd.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--data", type=Path, metavar="YAML", help=f"of BCCD (default: {BCCD} in a folder above)"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write everything to this file")
    options = made.parse_args(words)
    found = [folder / BCCD for folder in ROOT.parents if (folder / BCCD).is_file()]
    if options.data is None and not found:
        made.error(f"no folder above {ROOT} holds {BCCD}; --data names BCCD's yaml")
    began, date, machine = time.monotonic(), datetime.now(timezone.utc), describe([0])
    lines, status = judged(measured(options.data or found[0]))
    lines += [
        *(f"Run of {date:%Y-%m-%d %H:%M} UTC, {time.monotonic() - began:.0f} s:", ""),
        f"    {shlex.join(['python', 'benchmarks/leaks.py', *words])}",
        *("", *machine, ""),
    ]
    print("\n".join(lines))
    if options.record:
        options.record.write_text("\n".join(lines), encoding="utf-8")
    return status


def measured(bccd: Path) -> list[Part]:
    """All sections."""
    with tempfile.TemporaryDirectory(prefix="yolods-leaks-") as work:
        sets = {"BCCD, as published": Opened(bccd), "demo": Opened(ensure_demo(Path(work)))}
        warned = {"BCCD, as published"}
        return [published(sets, warned), copied(sets), videos(), drawings(), times()]


def judged(parts: Sequence[Part]) -> tuple[list[str], int]:
    """The record's text, and the exit status."""
    cases = [case for part in parts for case in part.cases]
    wrong = [f"- {case.name}: {'not ' * case.warned}warned of" for case in cases if not case.right]
    verdict = wrong or ["**Every split is warned of, or is not, as it should be.**"]
    text = ["# Leaks between splits", "", METHOD, "", *verdict, ""]
    return [*text, *(line for part in parts for line in part.lines)], 1 if wrong else 0


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # numpy reads it when it is loaded
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"}
        )
    sys.exit(main())
