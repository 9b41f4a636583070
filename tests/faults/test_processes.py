"""A few of the cases of processes.py: one for each layout, of each moment. All:
benchmarks/process_faults.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.processes import IMAGES, VAL_IMAGES, WHATS, Case, cases, play, wrong
from tests.tiny import make_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("forked_launches"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", train=IMAGES, val=VAL_IMAGES)


@pytest.mark.parametrize(
    "case",
    [
        Case("launcher", "zero3", "checkpoint"),
        Case("stuck in loading", "zero1", "step"),
        Case("SIGSTOP", "pipeline", "evaluation"),
    ],
    ids=lambda case: f"{case.what}, {case.layout}, {case.moment}",
)
def test_it_is_named_in_time_and_the_run_goes_on_as_if_nothing_had_been(
    data: Path, tmp_path: Path, case: Case
) -> None:
    whole = play(None, case.layout, data, tmp_path / "whole")
    assert whole.status == 0, whole.screen
    played = play(case, case.layout, data, tmp_path / "hurt")
    assert wrong(case, played, whole) == [], played.screen
    # A rank that is stuck, or that survives, leaves its stacks; those whose launcher is gone stop
    # in good order.
    assert bool(list((played.run / "logs").glob("stacks-rank*.txt"))) == (case.what != "launcher")


def test_the_matrix_has_every_fault_at_every_moment() -> None:
    assert {case.what for case in cases()} == set(WHATS)
    assert len(set(cases())) == len(cases()) == 7 * 3 * 3 - 6
