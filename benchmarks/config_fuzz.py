"""Random configurations: does the check before a start foresee everything, and do those that pass \
it take a step?

    python benchmarks/config_fuzz.py --record benchmarks/config_fuzz.md
    python benchmarks/config_fuzz.py --count 300 --starts 10

Draws out of tests/configs.py; tests/unit/test_config_fuzz.py does a part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from tests.configs import checked, draw, step
from tests.forks import stop

METHOD = """\
- A configuration is drawn from its number: a DeepSpeed JSON of one to nine keys, an optimizer \
block in 40 of 100, flags
  and hyper-parameters, with right values, and in two of five with wrong ones and misspelt keys \
among them.
- *refused*: the check before a start says what is wrong, by a line per fault. *passed*: it would \
start on CPU ranks.
- *tracebacks*: the check raises what it did not foresee.
- *started*: of those that passed, evenly spread, one epoch of YOLOv5 [0.33, 0.1] on eight images \
of 64 px, evaluation
  and checkpoints included, on one rank, or on two for pipelines and a tenth of the others.
- *died*: the status of a started one was not 0."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, check and start. Returns the exit status: 1 if anything was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--count", type=int, default=2000, metavar="N", help="configurations (default 2000)"
    )
    made.add_argument(
        "--starts",
        type=int,
        default=200,
        metavar="N",
        help="started of those that pass (default 200)",
    )
    made.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of the first one (default 0)"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    options = made.parse_args(words)
    began, date = time.monotonic(), datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    with tempfile.TemporaryDirectory(prefix="yolods-configs-") as name:
        passed, wrong = check_all(range(options.first, options.first + options.count), Path(name))
        tracebacks, chosen = len(wrong), spread(passed, options.starts)
        wrong += start_all(chosen, Path(name))
    stop()
    numbers = (
        options.count,
        options.count - len(passed) - tracebacks,
        len(passed),
        tracebacks,
        len(chosen),
    )
    lines = [
        *("# Random configurations", "", METHOD, ""),
        "| drawn | refused | passed | tracebacks | started | died |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| {' | '.join(map(str, numbers))} | {len(wrong) - tracebacks} |",
        *("", *(f"- {each}" for each in wrong), *([""] if wrong else [])),
        *(f"Run of {date}, {time.monotonic() - began:.0f} s:", ""),
        f"    {shlex.join(['python', 'benchmarks/config_fuzz.py', *words])}",
        *("", *describe([0, 1]), ""),
    ]
    print("\n".join(lines))
    if options.record:
        options.record.write_text("\n".join(lines), encoding="utf-8")
    return 1 if wrong else 0


def check_all(numbers: range, folder: Path) -> tuple[list[int], list[str]]:
    """Those that pass the check, and an account of each that it did not foresee."""
    passed, wrong = [], []
    for number in numbers:
        try:
            if checked(draw(number), folder) is None:
                passed.append(number)
        except Exception:
            wrong.append(
                f"{number}: {json.dumps(draw(number).raw)}: "
                f"{traceback.format_exc(limit=-1).splitlines()[-1]}"
            )
    return passed, wrong


def spread(passed: Sequence[int], count: int) -> list[int]:
    """`count` of them, evenly."""
    count = min(count, len(passed))
    return [passed[place * len(passed) // count] for place in range(count)]


def start_all(numbers: Sequence[int], folder: Path) -> list[str]:
    """An account of each whose ranks did not come to the end."""
    wrong = []
    for place, number in enumerate(numbers):
        if place % 10 == 0:
            print(f"{place} of {len(numbers)} started", flush=True)
        drawn = draw(number)
        last = step(drawn, folder)
        if last is not None:
            wrong.append(
                f"{number}: {json.dumps(drawn.raw)} {shlex.join(drawn.words)}: "
                f"{last.splitlines()[-1]}"
            )
            print(wrong[-1], flush=True)
    return wrong


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
