"""The most memory that a rank needs to hand a large model over, save it, resume it and evaluate it.

    python benchmarks/large_models_io.py --record benchmarks/large_models_io.md

Needs 12 GiB of memory and 15 GiB of disk for the default model. Exit status 1 if a rank took more
than its largest leaf and the allowance.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from tests.ranks import on_ranks

ALLOWANCE = 250.0
"""MiB beyond the largest leaf."""
LIMIT = 1500.0
"""Seconds after which the ranks count as hung."""
METHOD = """\
Two ranks on gloo, one thread each, ZeRO-3 in bf16 with SGD and momentum, images of 64 pixels. A \
number is the growth
of the process' peak resident memory (VmHWM, set back before) during a phase, beyond what the rank \
held before it:
its shards of weights, masters, momentum and moving average. Mapped files count. Ranks without a \
GPU hold on the host
what they would hold on their devices, so the layers that a forward pass gathers are included. \
Phases run one after
the other on the same engine; `resume` fills the shards that exist."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--model", default="yolov5[2,2]6", help="of the zoo (default yolov5[2,2]6)")
    made.add_argument("--record", type=Path, metavar="FILE", help="write the result to a file")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and judge."""
    given = parser().parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        call = "benchmarks.large_models_io_ranks:measure"
        seen = on_ranks(call, (2,), timeout=LIMIT, folder=folder, model=given.model)[2]
    text = "\n".join(
        [
            f"# Memory to save, resume and evaluate {given.model}",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `python benchmarks/large_models_io.py`",
            "",
            *describe(sorted(os.sched_getaffinity(0))),
            "",
            METHOD,
            "",
            *table(seen),
            "",
        ]
    )
    print(text)
    if given.record is not None:
        given.record.write_text(text, encoding="utf-8")
    return 1 if missed(seen) else 0


def table(seen: Sequence[dict[str, Any]]) -> list[str]:
    """A row per phase, with the whole model and the limit beside it."""
    first = seen[0]
    rows = [
        f"The whole model in fp32: {first['whole']:.0f} MiB; a rank's fp32 masters, momentum and "
        f"average: {first['shard']:.0f} MiB; the largest leaf in fp32: {first['leaf']:.0f} MiB; "
        f"allowed: {limit(first):.0f} MiB.",
        "",
        "| phase | rank 0, MiB | rank 1, MiB |",
        "| --- | ---: | ---: |",
    ]
    for phase in first["phases"]:
        cells = " | ".join(f"{rank['phases'][phase]:.0f}" for rank in seen)
        rows.append(f"| {phase} | {cells} |")
    return rows


def limit(rank: dict[str, Any]) -> float:
    """MiB that a phase may take."""
    return rank["leaf"] + ALLOWANCE


def missed(seen: Sequence[dict[str, Any]]) -> list[str]:
    """The phases that took more than is allowed."""
    return [
        phase for rank in seen for phase, taken in rank["phases"].items() if taken > limit(rank)
    ]


if __name__ == "__main__":
    sys.exit(main())
