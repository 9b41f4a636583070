"""Starts that come at once, and starts that fail where an earlier run has been: is a run ever \
taken for another?

    python benchmarks/one_run.py --record benchmarks/one_run.md

The starts are those of tests/faults/one_run.py, of which tests/faults/test_one_run.py plays a few.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from tests.faults.one_run import KINDS, PLACES, Case, cases, fail, finished, pair
from tests.tiny import make_dataset

METHOD = """\
- yolov5[0.1,0.1] at 64 px on 8 images, 2 epochs of 2 steps, one rank, started by `yolods launch \
train`.
- *At once*: two commands in the same moment in a new folder, in turn with one `--name` and with \
the default name. Right
  is a pair that ended with 0 twice, in two folders, each with one header and a row an epoch in \
results.csv, one
  config.json, two checkpoints under its own identity, `ended` with 0 under that identity, and its \
own weights.
- *Failed*: a start that fails in a fresh folder, with `--exist-ok` in a finished run's, and as \
`--resume` of that run
  with more epochs. Right is one whose status is not 0; after which no file of the earlier run's \
lies where a new one
  would (`--exist-ok`), all of them lie in `earlier/` unharmed, or, where it was refused with 2, \
all is as it was; and
  in which no `ended` says 0 of this start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Play what the command line says. Returns the exit status: 1 if anything was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--pairs", type=int, default=20, metavar="N", help="starts at once (default 20 pairs)"
    )
    made.add_argument(
        "--places", nargs="*", choices=PLACES, default=list(PLACES), help="of starts that fail"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    options = made.parse_args(words)
    began, date = time.monotonic(), datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    pairs: list[str] = []
    failed: dict[Case, str] = {}
    faults = 0

    def write() -> None:
        if options.record is not None:
            seconds = f"{time.monotonic() - began:.0f} s."
            lines = [*report(words, date, pairs, failed), "", f"{faults} wrong. {seconds}"]
            options.record.write_text("\n".join(lines) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="yolods-one-run-") as scratch:
        folder = Path(scratch)
        data = make_dataset(folder / "data", train=8, val=2)
        for number in range(options.pairs):
            named = ["--name", "same"] if number % 2 == 0 else []
            found, screen = pair(folder / "pair", data, named)
            pairs.append(", ".join(found) or "right")
            print(
                f"pair {number + 1}, {shlex.join(named) or 'the default name'}: {pairs[-1]}",
                flush=True,
            )
            faults += bool(found)
            if found:
                print(screen[-6000:], flush=True)
            shutil.rmtree(folder / "pair")
            write()
        before = finished(folder / "before", data) if options.places else None
        for case in (each for each in cases() if each.place in options.places):
            found, result = fail(case, data, before, folder / "failed")
            failed[case] = f"{result.status}, {', '.join(found) or 'right'}"
            print(f"{case.kind.name}, {case.place}: {failed[case]}", flush=True)
            faults += bool(found)
            if found:
                print(result.screen[-6000:], flush=True)
            shutil.rmtree(folder / "failed")
            write()
    return 1 if faults else 0


def report(
    words: Sequence[str], date: str, pairs: Sequence[str], failed: dict[Case, str]
) -> list[str]:
    """The record's lines, but for the last."""
    right = sum(each == "right" for each in pairs)
    lines = [
        *(f"# A run is one run, {date}", ""),
        *(f"    {shlex.join(['python', 'benchmarks/one_run.py', *words])}", ""),
        *describe([0, 1]),
        *("", METHOD, ""),
        f"At once: {right} of {len(pairs)} pairs right, {2 * len(pairs)} starts.",
        *(f"Pair {number + 1}: {each}." for number, each in enumerate(pairs) if each != "right"),
        "",
        f"| failed, with its status | {' | '.join(PLACES)} |",
        f"| --- |{' --- |' * len(PLACES)}",
    ]
    for kind in KINDS:
        cells = [failed.get(Case(kind, place), "-") for place in PLACES]
        lines.append(f"| {kind.name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
