"""A few of the changes of resumes.py, under ZeRO-1. All of them, under every layout:
benchmarks/resume_matrix.py."""

from __future__ import annotations

import pytest

from tests.faults.resumes import CHANGES, Played, play, wrong

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SAMPLE = (
    "nothing",
    "class added",
    "class renamed",
    "images added",
    "images removed",
    "images reordered",
    "other seed",
)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    return play("ZeRO-1", SAMPLE, tmp_path_factory.mktemp("resumes"))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_resume_after_a_change_goes_on_says_so_or_refuses(
    played: dict[str, Played], name: str
) -> None:
    assert wrong(CHANGES[name], played[name], played["undisturbed"]) == []


def test_the_matrix_has_every_change() -> None:
    """What a checkpoint depends on, one way and the other."""
    outcomes = {name: change.outcome for name, change in CHANGES.items()}
    assert list(outcomes.values()).count("refuses") == 7 and outcomes["nothing"] == "exact"
    assert {"class", "images", "image", "classes", "other", "nothing"} == {
        name.split()[0] for name in outcomes
    }
