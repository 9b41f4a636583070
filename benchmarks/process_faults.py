"""Processes that are killed, stopped, stuck or fail in the middle of a run: named in time, ended, and begun again?

    python benchmarks/process_faults.py --at-once 3 --record benchmarks/process_faults.md

The cases are those of tests/faults/processes.py, of which tests/faults/test_processes.py plays a
few.
"""  # noqa: E501

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    WHATS,
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
- Right is a case if it was named within 10 s, the run was restarted once (a launcher lost in the last evaluation: or
  came to its end without) and ended with 0, no process outlived the command, and the fp32 weights and running
  statistics at the end are, bit for bit, those of the undisturbed run."""  # noqa: E501


def main(argv: Sequence[str] | None = None) -> int:
    """Play what the command line says. Returns the exit status: 1 if anything was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: all"
    )
    made.add_argument("--whats", nargs="+", choices=WHATS, default=list(WHATS), help="default: all")
    made.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="layouts side by side (default 1)"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    options = made.parse_args(words)
    if options.at_once < 1:
        made.error("--at-once has to be at least 1")
    record = Record(options.record, words)
    with (
        tempfile.TemporaryDirectory(prefix="yolods-processes-") as scratch,
        ThreadPoolExecutor(options.at_once) as pool,
    ):
        data = make_dataset(Path(scratch, "data"), train=IMAGES, val=VAL_IMAGES)
        streams = [
            pool.submit(play_all, layout, options.whats, data, Path(scratch, layout), record)
            for layout in options.layouts
        ]
        for stream in streams:
            stream.result()
    return 1 if record.faults else 0


def play_all(layout: str, whats: Collection[str], data: Path, folder: Path, record: Record) -> None:
    """Every case of one layout that is of `whats`, beside its undisturbed run.

    Raises:
        RuntimeError: that one did not end well; with what the screen showed.
    """
    whole = play(None, layout, data, folder / "whole")
    if whole.status != 0:
        raise RuntimeError(f"{layout}, undisturbed: status {whole.status}\n{whole.screen}")
    for case in (each for each in cases() if each.layout == layout and each.what in whats):
        played = play(case, layout, data, folder / "hurt")
        record.add(case, played, wrong(case, played, whole))
        shutil.rmtree(folder / "hurt")


class Record:
    """What came of the cases that have been played, written anew with each; streams may add to it
    side by side."""

    def __init__(self, file: Path | None, words: Sequence[str]) -> None:
        """
        Args:
            words: of the command line.
        """
        self.faults: list[str] = []
        """Cases that were not handled rightly, and what was wrong."""
        self._file, self._words, self._about = file, words, describe([0, 1])
        self._date, self._began = (
            datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            time.monotonic(),
        )
        self._rows: dict[Case, str] = {}
        self._lock = threading.Lock()

    def add(self, case: Case, played: Played, found: Sequence[str]) -> None:
        """One case more, and what was wrong with it."""
        with self._lock:
            self._rows[case] = row(case, played, found)
            print(self._rows[case], flush=True)
            if found:
                self.faults.append(f"{case}: {', '.join(found)}")
                print(played.screen[-4000:], flush=True)
            if self._file is not None:
                self._file.write_text("\n".join(self._lines()) + "\n", encoding="utf-8")

    def _lines(self) -> list[str]:
        count, seconds = len(self._rows), time.monotonic() - self._began
        return [
            *(f"# Faults of processes, {self._date}", ""),
            *(f"    {shlex.join(['python', 'benchmarks/process_faults.py', *self._words])}", ""),
            *self._about,
            *("", METHOD, ""),
            *(
                "| what | layout | moment | named | again | |",
                "| --- | --- | --- | ---: | ---: | --- |",
            ),
            *(
                self._rows[case]
                for layout in LAYOUTS
                for case in self._rows
                if case.layout == layout
            ),
            *("", f"{count} of {len(cases())} cases, {len(self.faults)} wrong. {seconds:.0f} s."),
        ]


def row(case: Case, played: Played, found: Sequence[str]) -> str:
    """A case as a line of the table."""
    named = "-" if played.seconds is None else f"{played.seconds:.1f}"
    result = ", ".join(found) or "right"
    return (
        f"| {case.what} | {case.layout} | {case.moment} | {named} | {played.again:.0f} | {result} |"
    )


if __name__ == "__main__":
    sys.exit(main())
