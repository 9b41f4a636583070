"""What several of the comparisons start from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.forks import forked


@pytest.fixture(scope="session")
def seasoned(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Has `seasoned_weights` find its file, made once for the worlds of all modules."""
    screen = tmp_path_factory.mktemp("seasoned") / "screen"
    code = forked("tests.parity.small:keep_seasoned_weights", {}, screen=screen, timeout=60)
    assert code == 0 and Path(os.environ["TESTS_SCRATCH"], "seasoned.pt").is_file(), (
        screen.read_text()
    )
