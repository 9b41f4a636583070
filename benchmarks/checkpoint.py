"""What a checkpoint costs a run, written while it waits and written beside it; and what a killed \
rank costs.

    python benchmarks/checkpoint.py --record benchmarks/checkpoint.md

Needs two cores that nothing else uses, and about twenty minutes. Exit status 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.checkpoint_report import EVERY, TARGET, Case, Seen, doubts, misses, table
from benchmarks.checkpoint_restart import Restart, restart, restart_table
from benchmarks.hardware import describe
from benchmarks.throughput import available
from tests.ranks import on_ranks
from yolods.launch.command import ALLOCATOR

LIMIT = 1800.0
"""Seconds after which the ranks count as hung."""

METHOD = """\
Ranks of one thread each on CPU cores, gloo, fp32, AdamW; a step is one micro-batch. An interval \
begins with a save
or with none and goes on with steps. The three ways take turns, each round begins with another \
one. A rank's file holds
its fp32 weights, moments and moving average, and the same once more as the snapshot that a \
roll-back goes to.

- *held*: how long the main thread was kept from training by the save, on the rank that was kept \
longest. Asynchronous,
  that is the copy to host memory; beside a GPU, whose steps need no core, it is all that there is.
- *writing*: seconds of a core that the writing took. Where every core has its rank, as with two \
ranks here, an
  asynchronous checkpoint takes them from the steps; one rank leaves a core free for it.
- *longer*: by how much the interval was longer than the one without a checkpoint of the same \
round. It holds all of the
  cost, the disk's part too, and the noise of two whole intervals, which is given below.
- *stall*: held, and also writing where an asynchronous checkpoint has no core of its own: what \
the steps are kept
  waiting at most. The target is judged by it."""

RESTART_METHOD = """\
`yolods launch train --max-restarts 1` on two CPU ranks, yolov5n at 64 px, a checkpoint every 5 \
steps. Once a checkpoint
is there, rank 1 is killed by SIGKILL. *named*: from the kill until the screen says which rank it \
was; *ended*: until
no process of the run is left and it is started again; *resumed*: until the new ranks have read \
the checkpoint; *first
step*: until they have taken a step."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--models",
        nargs="*",
        default=["yolov5n", "yolov5m"],
        metavar="NAME",
        help="of the zoo; none: no stall",
    )
    made.add_argument(
        "--imgsz", type=int, default=160, metavar="PX", help="image size (default 160)"
    )
    made.add_argument(
        "--images", type=int, default=4, metavar="N", help="of a step on each rank (default 4)"
    )
    made.add_argument(
        "--steps", type=int, default=12, metavar="N", help="of an interval (default 12)"
    )
    made.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="intervals of each way (default 7)"
    )
    made.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        default=[2, 1],
        metavar="N",
        help="numbers of ranks (default 2 1)",
    )
    made.add_argument("--stage", type=int, default=2, metavar="N", help="of ZeRO (default 2)")
    made.add_argument(
        "--folder", type=Path, metavar="DIR", help="where checkpoints go (default: a temporary one)"
    )
    made.add_argument(
        "--restart", type=int, default=5, metavar="N", help="kills of a rank (default 5; 0: none)"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    if min(options.rounds, options.images, options.steps, *options.ranks) < 1:
        parser().error("--rounds, --images, --steps and --ranks have to be at least 1")
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    began = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    machine = describe(available()[: max(2, *options.ranks)])
    command = shlex.join(["python", "benchmarks/checkpoint.py", *words])
    cases, restarts = list(_cases(options)), list(_restarts(options))
    missed = misses(cases)
    verdict = "missed: " + "; ".join(missed) if missed else "met"
    lines = []
    if cases:
        workload = (
            f"Workload: ZeRO-{options.stage}, {options.images} images of {options.imgsz} px a rank "
            f"and step, {options.rounds} rounds of intervals of {options.steps} steps; medians "
            "(min..max)."
        )
        target = (
            f"Target (asynchronous, a stall of at most {TARGET:.0%} of {EVERY} steps): {verdict}."
        )
        lines += ["", METHOD, "", workload, "", target, "", *table(cases), "", *doubts(cases)]
    if restarts:
        lines += [
            "",
            "## A killed rank and the restart",
            "",
            RESTART_METHOD,
            "",
            *restart_table(restarts),
        ]
    print("\n".join(lines))
    if options.record is not None:
        text = "\n".join(
            [f"# What a checkpoint costs, {began}", "", f"    {command}", "", *machine, *lines]
        )
        options.record.write_text(text + "\n", encoding="utf-8")
    return 1 if missed else 0


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    os.environ |= ALLOCATOR | {"OMP_NUM_THREADS": "1"}
    for model in options.models:
        for count in options.ranks:
            with tempfile.TemporaryDirectory(
                prefix="yolods-checkpoint-", dir=options.folder
            ) as folder:
                told = on_ranks(
                    "benchmarks.checkpoint_ranks:measure",
                    (count,),
                    timeout=LIMIT,
                    folder=folder,
                    model=model,
                    imgsz=options.imgsz,
                    images=options.images,
                    steps=options.steps,
                    rounds=options.rounds,
                    stage=options.stage,
                )[count]
            case = Case(
                model,
                count,
                options.steps,
                [Seen.of(each) for each in told],
                len(available()) > count,
            )
            print("\n".join(table([case])[2:]), flush=True)
            yield case


def _restarts(options: argparse.Namespace) -> Iterator[Restart]:
    for number in range(options.restart):
        with tempfile.TemporaryDirectory(prefix="yolods-restart-", dir=options.folder) as folder:
            found = restart(Path(folder))
        print(f"{number + 1}: {found}", flush=True)
        yield found


if __name__ == "__main__":
    sys.exit(main())
