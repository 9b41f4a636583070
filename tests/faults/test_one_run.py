"""A few of the starts of one_run.py. All: benchmarks/one_run.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.one_run import KINDS, PLACES, Case, cases, fail, finished, pair
from tests.tiny import make_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("forked_launches"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", train=8, val=2)


def test_two_starts_at_once_are_two_runs(data: Path, tmp_path: Path) -> None:
    found, screen = pair(tmp_path / "pair", data, ())
    assert found == [], screen


def test_a_run_that_fails_in_a_finished_run_s_folder_fails_and_leaves_no_result_of_that_run(
    data: Path, tmp_path: Path
) -> None:
    """Its rank is killed in its first step, so it is started again, from the beginning and with
    none of the other's."""
    killed = next(kind for kind in KINDS if kind.name == "SIGKILL in the first step")
    before = finished(tmp_path / "before", data)
    found, result = fail(Case(killed, "--exist-ok"), data, before, tmp_path / "failed")
    assert found == [], result.screen
    assert "runs/exp to runs/exp/earlier" in result.screen
    assert "restart 1 of 1 from the beginning on 1 rank" in result.screen


def test_the_matrix_has_ten_kinds_in_three_places() -> None:
    assert len(set(cases())) == len(cases()) == len(KINDS) * len(PLACES) == 30
