"""Are our samples distributed as ultralytics' are? Their marginals, and how every two of their \
quantities depend.

    python benchmarks/samples.py --record benchmarks/samples.md

Both trainers' own loaders walk through one set of small images, at mosaic 0, 0.5 and 1, on 1 and 2
ranks, with 0 and 2 workers each, at the run's beginning, late in it, and after the mosaic has been
closed. An entry that differs by more than chance explains has to be a deliberate difference, which
is named. A control, in which Python's and numpy's generators are one stream, has to be seen. Exit
status 1 where an entry differs without a name, or the control is not seen. Ten minutes on a core of
its own; needs no accelerator.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MOSAIC, RANKS, WORKERS = (0.0, 0.5, 1.0), (1, 2), (0, 2)
CONTROL = (0.5, 1, 0)
"""The condition of the control: mosaic, ranks, workers."""
FEWEST = 1000


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--samples",
        type=int,
        default=5000,
        metavar="N",
        help="per condition and phase (default 5000)",
    )
    made.add_argument(
        "--mosaic",
        nargs="+",
        type=float,
        choices=MOSAIC,
        default=MOSAIC,
        metavar="P",
        help="probabilities (default all)",
    )
    made.add_argument(
        "--control",
        action="store_true",
        help="take the control for yolods, to see what is reported",
    )
    made.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="keep what was drawn there, and draw no part of it twice",
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write everything to this file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and compare as the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    if options.samples < FEWEST or options.samples % 4:
        parser().error(
            f"--samples {options.samples}: has to be a multiple of 4, and at least {FEWEST}"
        )
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    from yolods import compat

    compat.prepare()
    compat.stand_in_for_torchvision()
    from benchmarks.hardware import describe
    from benchmarks.samples_report import compared, judged
    from benchmarks.samples_run import Condition, make_set, run

    began, machine = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), describe([0])
    conditions = [Condition(*one) for one in itertools.product(options.mosaic, RANKS, WORKERS)]
    with tempfile.TemporaryDirectory(prefix="yolods-samples-") as name:
        work = (options.work or Path(name)) / str(options.samples)
        yaml = work / "set" / "set.yaml"
        if not yaml.exists():
            make_set(yaml.parent, options.samples // 2)

        def shown(side: str, condition: Condition) -> list:
            print(f"{side}, {condition}", flush=True)
            return run(side, yaml, condition, work)

        control = Condition(*CONTROL)
        sides = {
            condition: (
                shown("ultralytics", condition),
                shown("control" if options.control else "yolods", condition),
            )
            for condition in conditions
        }
        found = compared(sides)
        seen = compared({control: (shown("ultralytics", control), shown("control", control))})
    text, status = judged(found, seen)
    print("\n" + "\n".join(text))
    if options.record is not None:
        command = shlex.join(["python", "benchmarks/samples.py", *words])
        head = [f"# Sample against sample, {began}", "", f"    {command}", "", *machine, ""]
        options.record.write_text("\n".join([*head, *text]).rstrip() + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
