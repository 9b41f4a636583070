"""Processes that are killed, stopped, stuck or fail in the middle of a run: named in time, ended, and begun again?

    python benchmarks/process_faults.py --record benchmarks/process_faults.md

The cases are those of tests/faults/processes.py, of which tests/faults/test_processes.py plays a few.
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
from tests.faults.processes import (
    EPOCHS,
    EVERY_STEPS,
    GRACE,
    IMAGES,
    LAYOUTS,
    SILENCE,
    VAL_IMAGES,
    Case,
    Played,
    cases,
    play,
    wrong,
)
from tests.tiny import make_dataset

METHOD = f"""\
- yolov5[0.33,0.1] at 64 px on {IMAGES} images ({VAL_IMAGES} for evaluation), {EPOCHS} epochs, 4 images a step, two
  ranks, a checkpoint every {EVERY_STEPS} steps and epoch, started by `yolods launch train`; up to 3 restarts (the
  default). The fault comes once, in epoch 2, to rank 1 (stuck in loading on a pipeline: rank 0, which loads).
- *step*: in a forward pass (stuck: in `data`, or before the step's reduction); *evaluation*: in its second batch;
  *checkpoint*: as it is begun. *launcher*: SIGKILL for DeepSpeed's launcher of the host.
- silence_seconds {SILENCE} (the default), stall_seconds 7 (the default), grace_seconds {GRACE} (60 by default: how long
  something stuck that has been named is still given).
- *named*: seconds from the fault to the line on the screen that says which rank, on which host and in what.
- *again*: seconds from the fault to the end of the run, its restart and what was left of the training included.
- Right is a case if it was named within 10 s, the run was restarted once and ended with 0, no process outlived the
  command, and the fp32 weights and running statistics at the end are, bit for bit, those of the undisturbed run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Play what the command line says. Returns the exit status: 1 if anything was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: all")
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    options = made.parse_args(words)
    began, date, about = time.monotonic(), datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), describe([0])
    rows: list[str] = []
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="yolods-processes-") as scratch:
        folder = Path(scratch)
        data = make_dataset(folder / "data", train=IMAGES, val=VAL_IMAGES)
        for layout in options.layouts:
            whole = play(None, layout, data, folder / layout)
            if whole.status != 0:
                print(whole.screen)
                return 1
            for case in (each for each in cases() if each.layout == layout):
                played = play(case, layout, data, folder / "hurt")
                found = wrong(played, whole)
                rows.append(row(case, played, found))
                print(rows[-1], flush=True)
                faults += [f"{case}: {', '.join(found)}"] if found else []
                if found:
                    print(played.screen[-4000:], flush=True)
                shutil.rmtree(folder / "hurt")
                _record(options.record, date, words, about, rows, faults, began)
    return 1 if faults else 0


def row(case: Case, played: Played, found: Sequence[str]) -> str:
    """A case as a line of the table."""
    named = "-" if played.seconds is None else f"{played.seconds:.1f}"
    result = ", ".join(found) or "right"
    return f"| {case.what} | {case.layout} | {case.moment} | {named} | {played.again:.0f} | {result} |"


def _record(
    file: Path | None,
    date: str,
    words: Sequence[str],
    about: Sequence[str],
    rows: Sequence[str],
    faults: Sequence[str],
    began: float,
) -> None:
    """Write what there is so far; the last call writes all of it."""
    if file is None:
        return
    lines = [
        *(f"# Faults of processes, {date}", ""),
        *(f"    {shlex.join(['python', 'benchmarks/process_faults.py', *words])}", ""),
        *about,
        *("", METHOD, ""),
        *("| what | layout | moment | named | again | |", "| --- | --- | --- | ---: | ---: | --- |", *rows),
        *("", f"{len(rows)} of {len(cases())} cases, {len(faults)} wrong. {time.monotonic() - began:.0f} s."),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
