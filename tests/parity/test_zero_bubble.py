"""Zero-bubble against 1F1B at equal weights: gradients, losses, statistics and the step.

A sample; `python benchmarks/zero_bubble.py` compares them at every cut of YOLOv5n.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.parity.pipes import faults_of, split_step
from tests.parity.schedules import LIMIT, schedules_apart
from tests.parity.splits import Case, case_of
from tests.parity.whole import weights_for
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks

pytestmark = pytest.mark.slow

EXACT: dict[str, Any] = {"channels_last": False}
CASES = {
    2: [
        Case(cuts=(1,)),
        Case(cuts=(13,), micro_batches=4),
        Case(cuts=("24.0.cls0",), zero=1),
        Case(cuts=(13,), precision="bf16", zero=1, micro_batches=3),
        Case(cuts=(13,), precision="fp16", zero=1),
        Case(cuts=(9,), precision="autocast", zero=1),
        Case(cuts=(13,), freeze=10, empty=(0,)),
    ],
    4: [
        Case(cuts=(4, 9, 17), micro_batches=6),
        Case(cuts=(6, 13, 18), micro_batches=2, zero=1),
        Case(cuts=(6, 13, 18), micro_batches=12),
        Case(cuts=(13,), replicas=2, sync_bn=True, zero=1),
    ],
}
"""By ranks."""
WHOLE = Case(cuts=(13,), schedule="zb", micro_batches=4, **EXACT)
"""Compared with plain ultralytics too."""


def measure(ranks: Ranks, cases: dict[str, list[dict[str, Any]]], folder: str) -> dict[str, Any]:
    """On a rank: every comparison of this number of ranks, by label."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True  # of a CPU; it is only slow
    place = Path(folder)
    weights = weights_for(ranks, "yolov5n", place)
    found: dict[str, Any] = {
        case.label: schedules_apart(ranks, case, weights, place)
        for case in map(case_of, cases[str(ranks.size)])
    }
    if ranks.size == WHOLE.ranks:
        found["whole"] = split_step(ranks, WHOLE, weights, place)
    return found


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, seasoned: None
) -> dict[int, list[dict[str, Any]]]:
    call = {
        "cases": {size: [asdict(case) for case in cases] for size, cases in CASES.items()},
        "folder": str(tmp_path_factory.mktemp("schedules")),
    }
    return on_ranks("tests.parity.test_zero_bubble:measure", tuple(CASES), timeout=85, **call)


@pytest.mark.parametrize(
    "case",
    [case for cases in CASES.values() for case in cases],
    ids=lambda case: case.label.replace(" ", "-"),
)
def test_a_step_is_that_of_1f1b(measured: dict[int, list[dict[str, Any]]], case: Case) -> None:
    for rank in measured[case.ranks]:
        found = rank[case.label]
        for what in ("gradient", "loss", "statistic", "weight"):
            assert found[what][0] <= LIMIT, what


def test_it_is_that_of_the_whole_model(measured: dict[int, list[dict[str, Any]]]) -> None:
    assert not faults_of(WHOLE, 0, [rank["whole"] for rank in measured[2]])
