"""clipping.md's table on the device, with absolute times and the share of the memory's bandwidth
that they reach."""

from __future__ import annotations

import statistics

import torch

from benchmarks.clipping import SIZES
from benchmarks.clipping_report import OURS, Case, Row, tables
from benchmarks.clipping_run import case, clock
from benchmarks.gpu_job import Job

DTYPES = ("fp16", "fp32")
ROUNDS = 7
COPIED = 2**30
"""Bytes of the tensor whose copying tells the bandwidth."""


def clipping(job: Job) -> None:
    """Every way on a yolov5x's gradients, and on 1e9 of them."""
    place = torch.device("cpu" if job.pretend else "cuda")
    with job.item("bandwidth of memory") as item:
        bandwidth = copy_bandwidth(place, COPIED // 64 if job.pretend else COPIED)
        item.facts["GB/s, read and written"] = bandwidth / 1e9
    for model in ("yolov5n",) if job.pretend else SIZES:
        for dtype in DTYPES[:1] if job.pretend else DTYPES:
            with job.item(f"{model}, {dtype}") as item:
                found = case(model, dtype, 2 if job.pretend else ROUNDS, place)
                item.facts["parameters"] = found.parameters
                item.facts |= {str(row.name): times(row, bandwidth) for row in found.rows}
                item.facts["targets"] = [
                    line for line in tables([found]) if "**missed**" in line and "both" not in line
                ]
                for row in found.rows:
                    if row.name.what == OURS:
                        item.expect(row.syncs <= 1, f"{row.name}: the host waits {row.syncs} times")
                    item.expect(
                        _agrees(row, found), f"{row.name}: its norm is not that of the others"
                    )


def copy_bandwidth(place: torch.device, size: int) -> float:
    """Bytes a second, read and written, at which a tensor is copied on the device: the fastest of
    five times."""
    source = torch.ones(size, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / min(clock(lambda: target.copy_(source), place).seconds for _ in range(5))


def times(row: Row, bandwidth: float) -> dict[str, float]:
    """Milliseconds of both parts, and what measuring moves over what the memory could have moved in
    that time."""
    seconds = statistics.median(row.seconds(both=False))
    told = {
        "measuring, ms": 1e3 * seconds,
        "of the bandwidth, %": 100 * row.measuring.tally.moved / seconds / bandwidth,
    }
    if row.applying is not None:
        told["both parts, ms"] = 1e3 * statistics.median(row.seconds(both=True))
    return told


def _agrees(row: Row, found: Case) -> bool:
    norms = [each.norm for each in found.rows if each.norm is not None]
    return row.norm is None or abs(row.norm - statistics.median(norms)) <= 1e-2 * statistics.median(
        norms
    )
