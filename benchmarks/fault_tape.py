"""Faults on purpose in every layout: is each one named rightly, and does anything of it remain?

    python benchmarks/fault_tape.py --record benchmarks/fault_tape.md
    python benchmarks/fault_tape.py --record benchmarks/fault_tape.md --layouts zero3 zero3_fp16

Plays the tape of tests/faults/tape.py on gloo ranks of this machine's CPU;
tests/faults/test_tape.py plays a part of it. Layouts that are not played again keep their rows in
the record, and the runs that those came from their conditions.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from benchmarks.joined import RUN, joined
from tests.faults.tape import (
    HALF_LAYOUTS,
    KINDS,
    LAYOUTS,
    MICRO_BATCHES,
    MODEL,
    SPIKE,
    faults_in,
    summary,
)
from tests.ranks import on_ranks

CHUNK = 50
"""Faults that one start of ranks plays."""
SECONDS_A_STEP = 30.0
"""At most, on a machine that does other things as well."""
HALF_SHARE = 10
"""A layout in fp16, which a CPU is slow at, gets a tenth of the faults."""
CLEAN_SHARES = {
    "zero0": 2,
    "zero1": 2,
    "zero2": 2,
    "zero3": 0.5,
    "pipeline": 3,
    "zero1_syncbn": 0.5,
    "zero0_powersgd": 0.5,
    "zero1_powersgd": 0.5,
}
"""Of the clean steps, by how quick a layout takes them."""

METHOD = f"""\
- A tape is drawn from (convolution x rank x micro-batch x kind): inf or nan in one element of a layer's output, of the
  gradient of that output, of a parameter's gradient, or of an image; and the gradient of an output times {SPIKE:g}.
- Each fault is one optimizer step of {MICRO_BATCHES} micro-batches on 2 ranks (pipeline: 2 stages), of {MODEL} at
  64 px, ZeRO as named, AdamW, after 20 clean steps; a clean step follows every third fault.
- *named*: exactly one culprit, with the right layer, rank, micro-batch and kind, and for an image its file.
- *nothing remains*: masters, moments, moving average and BatchNorm's statistics are the same bits as before the step,
  on every rank, and finite.
- *false alarms*: clean steps that were not applied."""  # noqa: E501


COLUMNS = ("layout", "faults", *KINDS, "wrong", "clean steps", "false alarms", "causes", "run of")


def main(argv: Sequence[str] | None = None) -> int:
    """Play the tape as the command line says. Returns the exit status: 1 if anything was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--faults",
        type=int,
        default=1000,
        metavar="N",
        help="in fp32, over all layouts (default 1000)",
    )
    made.add_argument(
        "--clean", type=int, default=10_000, metavar="N", help="clean steps in all (default 10000)"
    )
    made.add_argument(
        "--layouts", nargs="+", choices=(*LAYOUTS, *HALF_LAYOUTS), default=[*LAYOUTS, *HALF_LAYOUTS]
    )
    made.add_argument(
        "--record",
        type=Path,
        metavar="MD",
        help="write the result to this file, among what is in it",
    )
    options = made.parse_args(words)
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # ranks are forked, from a process that may have no second thread
    began, date = time.monotonic(), datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    before = (
        options.record.read_text(encoding="utf-8")
        if options.record and options.record.exists()
        else ""
    )
    conditions = [
        f"{RUN}{date}",
        "",
        f"    {shlex.join(['python', 'benchmarks/fault_tape.py', *words])}",
        "",
    ]
    conditions += [*describe([0, 1]), ""]
    rows: list[list[str]] = []
    wrong: list[str] = []
    for layout in options.layouts:
        for row, faults in _play_layout(layout, options.faults, options.clean):
            rows = [each for each in rows if each[0] != layout] + [[*row, date]]
            wrong += faults
            print("\n".join([" | ".join(row), *faults]), flush=True)
            told = [
                *(f"- {each}" for each in wrong),
                *([""] if wrong else []),
                f"{time.monotonic() - began:.0f} s.",
            ]
            text = merged(before, rows, "\n".join([*conditions, *told]))
            if options.record:  # each time, so that a later failure loses nothing
                options.record.write_text(text, encoding="utf-8")
    print(text)
    return 1 if wrong else 0


def merged(before: str, rows: Sequence[Sequence[str]], run: str) -> str:
    """A record with new rows in it: see `joined`."""
    every, runs = joined(before, rows, run)
    totals = {name: sum(int(row[COLUMNS.index(name)]) for row in every) for name in COLUMNS[1:-2]}
    lines = [
        *("# Tape of faults", "", METHOD, ""),
        f"| {' | '.join(COLUMNS)} |",
        "| --- " + "| ---: " * (len(COLUMNS) - 3) + "| --- | --- |",
        *(f"| {' | '.join(row)} |" for row in every),
        "",
        f"In all {len(every)} layouts, {totals['faults']} faults, of which {totals['wrong']} were "
        f"not handled rightly, and {totals['clean steps']} clean steps, of which "
        f"{totals['false alarms']} were not applied.",
        *("", "\n\n".join(runs), ""),
    ]
    return "\n".join(lines)


def _play_layout(layout: str, faults: int, clean: int) -> Iterator[tuple[list[str], list[str]]]:
    """After every start of ranks: the cells of what has been played so far, and what is newly
    wrong."""
    half = layout in HALF_LAYOUTS
    count = max(faults // len(LAYOUTS) // (HALF_SHARE if half else 1), 1)
    quiet = 0 if half else round(clean * CLEAN_SHARES[layout] / sum(CLEAN_SHARES.values()))
    counts, wrong, alarms, steps = dict.fromkeys(KINDS, 0), 0, 0, 0
    causes: dict[str, int] = {}
    chunks = [min(CHUNK, count - first) for first in range(0, count, CHUNK)]
    for place, size in enumerate(chunks):
        more = quiet // len(chunks)
        with tempfile.TemporaryDirectory() as folder:
            reports = on_ranks(
                "tests.faults.tape:play",
                (2,),
                timeout=60 + SECONDS_A_STEP * (2 * size + 60 + more),
                **{"layout": layout, "count": size, "seed": place, "folder": folder, "clean": more},
            )[2]
        found = faults_in(reports, layout)
        wrong += len(found)
        alarms += reports[0]["alarms"]
        steps += reports[0]["clean"]
        for key, number in summary(reports).items():
            if key in counts:
                counts[key] += number
            elif key.startswith("as "):
                causes[key[3:]] = causes.get(key[3:], 0) + number
        told = ", ".join(f"{cause} {number}" for cause, number in sorted(causes.items()))
        numbers = (
            sum(chunks[: place + 1]),
            *(counts[kind] for kind in KINDS),
            wrong,
            steps,
            alarms,
        )
        yield [layout, *map(str, numbers), told], found


if __name__ == "__main__":
    sys.exit(main())
