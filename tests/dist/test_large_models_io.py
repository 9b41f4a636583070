"""Two ranks under ZeRO-3 save, resume and evaluate a model, and neither ever holds the whole of it.

A small form of benchmarks/large_models_io.py, whose record has a large model.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.large_models_io import missed
from tests.ranks import on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

ONE_BY_ONE = ("last.pt", "best.pt loaded for the final evaluation", "export of a checkpoint")
"""Phases that take one tensor at a time. The others also read or copy in pieces of 64 MiB, which
are most of so small a model."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("large")
    call = "benchmarks.large_models_io_ranks:measure"
    return on_ranks(call, (2,), timeout=150, folder=str(folder), model="yolov5l")[2]


def test_no_phase_takes_more_than_is_allowed(seen: list[dict[str, Any]]) -> None:
    assert missed(seen) == []


@pytest.mark.parametrize("phase", ONE_BY_ONE)
def test_weights_pass_one_tensor_at_a_time(seen: list[dict[str, Any]], phase: str) -> None:
    """Gathered at once, they would take 14 bytes a parameter, 3.5 times the whole model in fp32."""
    for rank in seen:
        assert rank["phases"][phase] < 0.75 * rank["whole"]
