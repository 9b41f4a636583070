"""Runs that are gone on with after something has changed, under every layout: exactly, told of, or refused?

    python benchmarks/resume_matrix.py --record benchmarks/resume_matrix.md

The changes are those of tests/faults/resumes.py, of which tests/faults/test_resumes.py plays a few.
"""  # noqa: E501

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from tests import forks
from tests.faults.resumes import (
    CHANGES,
    EPOCHS,
    FEWER,
    IMAGES,
    LAYOUTS,
    LEFT_AT,
    MORE,
    STEP,
    Played,
    play,
    wrong,
)

METHOD = f"""\
- yolov5[0.1,0.1] at 64 px on {IMAGES} images, {EPOCHS} epochs, {STEP} images a step, two ranks, fp32. The run is left
  after step {LEFT_AT}, in its second epoch; then one thing is changed, and `train --resume` goes on with it. Images
  added: {MORE - IMAGES} more; removed: {IMAGES - FEWER} fewer; reordered: the first one is renamed to be the last.
- *refuses*: the launcher's check, before a process starts, and rank 0 of a run without it say the same line, with both
  values; status 2; configuration, results and checkpoints in the folder are untouched.
- *says*: a line tells of the change, the run ends with 0, results.csv has {EPOCHS} epochs, as many samples were taken
  as {EPOCHS} epochs of the images that there are have, and no loss jumps.
- *exact*: the fp32 weights and running statistics at the end are, bit for bit, those of a run that was not left.
- A cell is "ok" if all of that held, and says otherwise what did not."""  # noqa: E501


def main(argv: Sequence[str] | None = None) -> int:
    """Play what the command line says. Returns the exit status: 1 if anything was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: all"
    )
    made.add_argument(
        "--changes", nargs="+", choices=CHANGES, default=list(CHANGES), help="default: all"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    options = made.parse_args(words)
    found: dict[str, dict[str, str]] = {}
    for layout in options.layouts:
        with tempfile.TemporaryDirectory(prefix="yolods-resumes-") as scratch:
            found[layout] = _judged(play(layout, tuple(options.changes), Path(scratch)))
            for change, cell in found[layout].items():
                print(f"{layout}: {change}: {cell}", flush=True)
    forks.stop()
    if options.record:
        options.record.write_text(_render(found, words), encoding="utf-8")
    return int(any(cell != "ok" for row in found.values() for cell in row.values()))


def _judged(played: dict[str, Played]) -> dict[str, str]:
    whole = played.pop("undisturbed")
    return {
        name: "; ".join(wrong(CHANGES[name], each, whole)) or "ok" for name, each in played.items()
    }


def _render(found: dict[str, dict[str, str]], words: Sequence[str]) -> str:
    changes = next(iter(found.values()))
    rows = [
        (
            f"| {change} | {CHANGES[change].outcome} | "
            f"{' | '.join(row[change] for row in found.values())} |"
        )
        for change in changes
    ]
    count = sum(cell == "ok" for row in found.values() for cell in row.values())
    lines = [
        *(f"# Going on with what has changed, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC", ""),
        *(f"    {shlex.join(['python', 'benchmarks/resume_matrix.py', *words])}", ""),
        *describe([0, 1]),
        *("", METHOD, ""),
        *(
            f"| changed | expected | {' | '.join(found)} |",
            f"|{' --- |' * (len(found) + 2)}",
            *rows,
        ),
        *(
            "",
            (
                f"{count} of {len(found) * len(changes)} cases came out as "
                "[recovery.md](../docs/recovery.md) has it."
            ),
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
