"""Zero-bubble beside 1F1B: gradients at every cut, simulated idle time, and measured steps.

    python benchmarks/zero_bubble.py --record benchmarks/zero_bubble.md

Each part is a section of the record; `--only` runs one part and leaves the others as they are.
Exit status 1 if a target is missed. *steps* needs two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from benchmarks.parity_pipeline import N, inner_cuts, layer_cuts
from benchmarks.zero_bubble_ranks import CUT, IMAGES, MODEL, SIZE, measure_gradients, measure_steps
from benchmarks.zero_bubble_report import Step, gradient_table, idle_table, misses, step_tables
from tests.parity.schedules import LIMIT
from tests.parity.splits import Case
from tests.ranks import on_ranks
from yolods.launch.command import ALLOCATOR
from yolods.plan.zero_bubble import COST

SECONDS_PER_CASE = 60
CHUNK = 8
"""Cuts per start of the ranks."""
FEW, MANY = 3, 5
"""Micro-batches whose gradients are compared."""

GRADIENTS = f"""\
A step of yolov5n in two stages, cut at every layer and inside of layers, at 64 pixels with {FEW}
micro-batches of 2 images, of which zero-bubble divides all backward passes, and with {MANY}, of
which it divides the last one; fp32, from equal weights. Largest relative distance (norms in fp64)
of zero-bubble's gradients, losses and BatchNorm statistics from 1F1B's; the limit is {LIMIT:g}.
*equal*: cuts at which all of them are equal to the bit."""

SIMULATED = f"""\
Idle share of equal stages whose F, B and W take the given times, without transfers
(`yolods.plan.zero_bubble.simulate_split`, `yolods.plan.one_f_one_b.simulate`). Target: with 4
stages and 8 micro-batches at most 0.6 of 1F1B's. *step*: zero-bubble's step beside 1F1B's if W of
a divided pass takes {1 + COST:g} times as long (`yolods.plan.zero_bubble.COST`)."""

STEPS = f"""\
Two ranks, pinned to a core each, one thread: {MODEL} at {SIZE} pixels cut before {CUT}, {IMAGES}
images per micro-batch, fp32, learning rate 0. Both schedules run in the same engine and take
turns; each round begins with the other one, and the first round does not count. Medians
(lowest..highest). *step*: wall time of `train_step`. *zb / 1F1B*: round by round. *played*: the
time that the passes would take with a core for each stage, from the CPU seconds of each pass, in
the order of the schedule; other processes do not change it. *CPU*: seconds of both ranks in a
step, gloo's threads included. *F, whole, B, W*: CPU milliseconds of a forward pass, of an undivided
backward pass, and of the parts of a divided one, on the stages 0 / 1. Targets: no slower at any
number of micro-batches, and faster at 4."""


def gradients(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The section's table, and what misses its target."""
    groups = {
        f"cuts {where} layers, m = {count}": [Case(cuts=cuts, micro_batches=count) for cuts in each]
        for where, each in {
            "between": [case.cuts for case in layer_cuts(N)],
            "inside": [case.cuts for case in inner_cuts()],
        }.items()
        for count in (FEW, MANY)
    }
    found: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {name: [] for name in groups}
    with tempfile.TemporaryDirectory(prefix="yolods-zero-bubble-") as folder:
        for name, cases in groups.items():
            for first in range(0, len(cases), CHUNK):
                chunk = cases[first : first + CHUNK]
                by_rank = on_ranks(
                    f"benchmarks.zero_bubble_ranks:{measure_gradients.__name__}",
                    (2,),
                    timeout=120.0 + SECONDS_PER_CASE * len(chunk),
                    cases=[asdict(case) for case in chunk],
                    folder=folder,
                )[2]
                found[name] += [
                    (case.label, list(reports))
                    for case, *reports in zip(chunk, *by_rank, strict=True)
                ]
                print(f"{name}: {len(found[name])} of {len(cases)}", flush=True)
    return gradient_table(found, LIMIT)


def simulated(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Likewise."""
    return idle_table()


def steps(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Likewise."""
    by_rank = on_ranks(
        f"benchmarks.zero_bubble_ranks:{measure_steps.__name__}",
        (2,),
        timeout=options.limit,
        counts=options.micro_batches,
        rounds=options.rounds,
        cores=sorted(os.sched_getaffinity(0))[:2],
    )[2]
    taken = [[Step(**each) for each in rank] for rank in by_rank]
    return step_tables(taken), misses(taken)


PARTS: dict[str, tuple[Callable[..., tuple[list[str], list[str]]], str]] = {
    "gradients": (gradients, GRADIENTS),
    "simulated": (simulated, SIMULATED),
    "steps": (steps, STEPS),
}


def section(name: str, options: argparse.Namespace) -> tuple[str, bool]:
    """A part's text for the record, and whether its targets are met."""
    run, method = PARTS[name]
    cores = sorted(os.sched_getaffinity(0))[:2]
    head, began = describe(cores), time.perf_counter()
    table, missed = run(options)
    verdict = ["Targets: met."] if not missed else ["Targets missed:", *(f"- {m}" for m in missed)]
    when = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M UTC}, {time.perf_counter() - began:.0f} s"
    conditions = [] if name == "simulated" else [*head, ""]
    parts = [f"## {name.capitalize()}", "", f"{when}", "", *conditions, method, "", *verdict, ""]
    return "\n".join([*parts, *table]).rstrip() + "\n", not missed


def recorded(text: str, sections: dict[str, str]) -> str:
    """The record with these sections in place of those of the same name."""
    old = {
        part.split("\n", 1)[0].lower(): f"## {part}"
        for part in re.split("^## ", text, flags=re.M)[1:]
    }
    kept = {**old, **sections}
    title = (
        "# Zero-bubble beside 1F1B\n\n"
        "`python benchmarks/zero_bubble.py --record benchmarks/zero_bubble.md`\n\n"
    )
    return title + "\n".join(f"{kept[name].rstrip()}\n" for name in PARTS if name in kept)


def chosen(options: argparse.Namespace) -> Iterator[str]:
    """The parts to run."""
    return (name for name in PARTS if options.only in (None, name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", choices=PARTS, help="run this part alone")
    parser.add_argument("--record", type=Path, metavar="MD", help="write the sections to this file")
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=[2, 4, 8], metavar="M", help="of a step"
    )
    parser.add_argument(
        "--rounds", type=int, default=10, metavar="N", help="steps of each schedule"
    )
    parser.add_argument(
        "--limit", type=float, default=1800.0, metavar="S", help="seconds for the measured steps"
    )
    options = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **ALLOCATOR}
    met, sections = True, {}
    with tempfile.TemporaryDirectory(prefix="yolods-settings-") as folder:
        os.environ["YOLO_CONFIG_DIR"] = folder
        for name in chosen(options):
            sections[name], good = section(name, options)
            print(sections[name], flush=True)
            met &= good
    if options.record:
        old = options.record.read_text(encoding="utf-8") if options.record.is_file() else ""
        options.record.write_text(recorded(old, sections), encoding="utf-8")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
