"""What two ranks send in a step under ZeRO 0 to 3, beside the ways that DeepSpeed has.

    python benchmarks/reduction.py --record benchmarks/reduction.md

Exit status 1 if a target is missed. Bytes and calls do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from benchmarks.reduction_ranks import accuracy, measure
from benchmarks.reduction_report import accuracy_table, missed_targets, sent_table
from tests.parity.small import NAMES
from tests.ranks import on_ranks
from yolods.launch.command import ALLOCATOR
from yolods.model.architecture.build import architecture, build, parse_name

OLD: dict[int, dict[str, Any]] = {
    0: {"overlap_comm": False, "reduce_bucket_size": 500_000_000},
    **{
        stage: {"use_multi_rank_bucket_allreduce": True, "reduce_bucket_size": 50_000_000}
        for stage in (1, 2)
    },
    3: {"reduce_bucket_size": 50_000_000},
}
"""Keys with which each stage does what it did before: DeepSpeed's defaults with large buckets."""
TYPES = ["bf16"]

SENT = """\
yolov5n with 3 classes at 64 pixels, 2 images per micro-batch, fp32, two gloo ranks, fourth step.
Bytes that a rank sends by the rule of rings (an all-reduce of S bytes sends S over two ranks, an
exchange, a gather or a broadcast S / 2; gloo's reduce_scatter is an all-reduce), for everything
that torch.distributed is asked for in a step, the mean of the ranks. *2P*: P bytes of parameters
reduced to their owners and gathered. *begun early*: share of the gradients' bytes whose call begins
between the beginning of a backward pass and the gradient of the model's first weight, the last one.
Each cell: with the keys of the old way -> by default. Targets: ZeRO-1 and 2 at most 1.05 times 2P
with one micro-batch and 2 times with four; ZeRO 0 to 2 begin 80% early; ZeRO-3 makes at most 10
calls."""

ACCURACY = """\
The same model at its first weights under ZeRO-1, 2 micro-batches: relative distance (norms in fp64)
of the mean gradient that travelled in this type from the one that travelled in fp32."""


def sections(folder: str, limit: float) -> tuple[list[str], list[str]]:
    """The record's lines, and the missed targets."""
    cases = [
        {"zero": {"stage": stage, **(OLD[stage] if old else {})}, **{"accumulation": count}}
        | {"old": old}
        for stage in range(4)
        for count in (1, 4)
        for old in (True, False)
    ]
    settings: dict[str, Any] = {"timeout": limit, "within": "tests.calls:recorded"}
    place = f"benchmarks.reduction_ranks:{measure.__name__}"
    ranks = on_ranks(place, [2], cases=cases, folder=folder, **settings)[2]
    place = f"benchmarks.reduction_ranks:{accuracy.__name__}"
    first, _ = on_ranks(place, [2], types=TYPES, folder=folder, **settings)[2]
    net = build(architecture(parse_name("yolov5n"), len(NAMES), 3), NAMES)
    # Of 2 P, each of two ranks sends a half.
    theory = 4.0 * sum(each.numel() for each in net.parameters() if each.requires_grad)
    missed = missed_targets(cases, ranks, theory)
    verdict = ["Targets: met."] if not missed else ["Targets missed:", *(f"- {m}" for m in missed)]
    lines = ["## Sent", "", SENT, "", *verdict, "", *sent_table(cases, ranks, theory), ""]
    return [*lines, "## Accuracy", "", ACCURACY, "", *accuracy_table(first)], missed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--record", type=Path, metavar="MD", help="write the tables to this file")
    parser.add_argument(
        "--limit", type=float, default=800.0, metavar="S", help="seconds for the ranks"
    )
    options = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **ALLOCATOR}
    head, began = describe(sorted(os.sched_getaffinity(0))[:2]), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="yolods-reduction-") as folder:
        os.environ["YOLO_CONFIG_DIR"] = folder
        lines, missed = sections(folder, options.limit)
    when = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M UTC}, {time.perf_counter() - began:.0f} s"
    command = "`python benchmarks/reduction.py --record benchmarks/reduction.md`"
    title = ["# What a step sends", "", command]
    text = "\n".join([*title, "", when, "", *head, "", *lines]) + "\n"
    print(text)
    if options.record:
        options.record.write_text(text, encoding="utf-8")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
