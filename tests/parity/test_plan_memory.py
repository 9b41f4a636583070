"""The predicted memory of a few layouts, against the allocator's events in real steps; the whole
comparison is `benchmarks/plan.py --memory`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict

import pytest

from benchmarks.plan_memory import EACH, compared
from benchmarks.plan_memory_run import MemoryCase
from tests.ranks import on_ranks

pytestmark = pytest.mark.slow

SMALL = {"imgsz": 96, "bucket": 1_000_000}
CASES = (
    MemoryCase(**SMALL, zero_stage=0, precision="bf16"),
    MemoryCase(**SMALL, zero_stage=1, recompute=4, classes=80, boxes=100),
    MemoryCase(**SMALL, zero_stage=1, ranks=2, cuts=(20,)),
    MemoryCase(**SMALL, zero_stage=1, ranks=2, precision="bf16", sync_bn=True),
    MemoryCase(**SMALL, zero_stage=2, ranks=2, offload=True),
    MemoryCase(**SMALL, zero_stage=3, ranks=2),
)


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: f"zero{case.zero_stage}-{case.ranks}",
)
def test_the_peak_is_the_predicted_one(case: MemoryCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        peaks = on_ranks(
            "benchmarks.plan_memory_run:measured_peak",
            (case.ranks,),
            timeout=120,
            folder=folder,
            case=asdict(case),
        )[case.ranks]
    assert abs(compared(case, peaks).error) <= EACH
