"""A part of the tape of faults: each is named rightly, and nothing of it remains.

The whole one, 1,000 faults and 10,000 clean steps, is played by `python benchmarks/fault_tape.py`
and recorded in benchmarks/fault_tape.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.tape import KINDS, faults_in, summary
from tests.ranks import on_ranks

FAULTS = 8
HALF = 5
"""Faults under fp16, which a CPU is slow at, and of layouts that others resemble."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    "layout", ["zero0", "zero1_syncbn", "zero3", "pipeline", "zero2_fp16", "pipeline_fp16"]
)
def test_faults_are_named_and_leave_nothing_behind(layout: str, tmp_path: Path) -> None:
    count = HALF if layout.endswith("fp16") else FAULTS
    reports = on_ranks(
        "tests.faults.tape:play",
        (2,),
        timeout=180,
        **{"layout": layout, "count": count, "seed": 0, "folder": str(tmp_path)},
    )[2]
    assert not faults_in(reports, layout)
    if count == FAULTS:
        assert set(KINDS) <= set(summary(reports)), "the tape misses a kind of fault"


@pytest.mark.parametrize("layout", ["zero2", "pipeline_recompute"])
def test_probes_that_are_always_on_need_no_second_run(layout: str, tmp_path: Path) -> None:
    told = {
        "layout": layout,
        "count": HALF,
        "seed": 0,
        "folder": str(tmp_path),
        "attribution": "always",
    }
    reports = on_ranks("tests.faults.tape:play", (2,), timeout=180, **told)[2]
    assert not faults_in(reports, layout)
