"""A part of the tape of faults: each is named rightly, and nothing of it remains.

The whole one, 1,000 faults and 10,000 clean steps, is played by `python benchmarks/fault_tape.py`
and recorded in benchmarks/fault_tape.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.tape import KINDS, faults_in, summary
from tests.ranks import on_ranks

FAULTS = len(KINDS)
"""Of a layout: one of each kind."""
WARM_STEPS = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


LAYOUTS = (
    *("zero0", "zero1_syncbn", "zero3", "pipeline", "zero2_fp16", "pipeline_fp16"),
    "zero1_powersgd",
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_faults_are_named_and_leave_nothing_behind(layout: str, tmp_path: Path) -> None:
    reports = _play(layout, tmp_path)
    assert not faults_in(reports, layout)
    assert set(KINDS) <= set(summary(reports)), "the tape misses a kind of fault"


@pytest.mark.parametrize("layout", ["zero2", "pipeline_recompute"])
def test_probes_that_are_always_on_need_no_second_run(layout: str, tmp_path: Path) -> None:
    assert not faults_in(_play(layout, tmp_path, attribution="always"), layout)


def _play(layout: str, folder: Path, **told: str) -> list[dict[str, Any]]:
    told |= {"layout": layout, "folder": str(folder)}
    numbers = {"count": FAULTS, "seed": 0, "warm": WARM_STEPS}
    return on_ranks("tests.faults.tape:play", (2,), timeout=180, **told, **numbers)[2]
