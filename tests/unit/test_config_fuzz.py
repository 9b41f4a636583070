"""A part of benchmarks/config_fuzz.py: random configurations, checked, and some of those that pass
started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.config_fuzz import spread
from tests.configs import KEYS, checked, draw, step

pytestmark = [pytest.mark.slow, pytest.mark.process]

CHECKED, STARTED = 300, 6


def test_the_same_number_draws_the_same_configuration() -> None:
    assert draw(17) == draw(17) and draw(17) != draw(18)
    assert len({json.dumps(draw(number).raw) for number in range(50)}) > 40


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """What the check said of each configuration; it raises what it did not foresee."""
    folder = tmp_path_factory.mktemp("checked")
    return [checked(draw(number), folder) for number in range(CHECKED)]


def test_no_configuration_gives_a_traceback(said: list[str | None]) -> None:
    refused = [text for text in said if text is not None]
    for text in refused:
        assert all(line.strip() and "Traceback" not in line for line in text.splitlines()), text
    assert len(said) - len(refused) > CHECKED // 10 and len(refused) > CHECKED // 10


def test_configurations_that_pass_the_check_take_their_steps(
    said: list[str | None], tmp_path: Path
) -> None:
    passed = [number for number, text in enumerate(said) if text is None]
    for number in spread(passed, STARTED):
        assert step(draw(number), tmp_path) is None, (number, draw(number))


def test_draws_come_to_every_key() -> None:
    def paths(raw: dict, prefix: str = "") -> set[str]:
        found = set()
        for key, value in raw.items():
            found.add(f"{prefix}{key}")
            found |= paths(value, f"{prefix}{key}.") if isinstance(value, dict) else set()
        return found

    drawn = set().union(*(paths(draw(number).raw) for number in range(2000)))
    assert set(KEYS) <= drawn
