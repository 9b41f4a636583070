"""The record of the tape of faults holds runs of several days together."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
from benchmarks.fault_tape import COLUMNS, merged
from benchmarks.joined import RUN

FIRST, SECOND = "2026-01-01 10:00 UTC", "2026-01-02 10:00 UTC"


def row(layout: str, faults: int, wrong: int, clean: int, date: str) -> list[str]:
    cells = [layout, faults, *[0] * 5, wrong, clean, 0, "forward 1, backward 2", date]
    assert len(cells) == len(COLUMNS)
    return [str(cell) for cell in cells]


def line(row: list[str]) -> str:
    return f"\n| {' | '.join(row)} |\n"


def test_rows_of_layouts_that_are_not_played_again_stay_with_their_run() -> None:
    first = merged(
        "",
        [row("zero1", 3, 0, 7, FIRST), row("zero2", 4, 1, 8, FIRST)],
        f"{RUN}{FIRST}\n\n    first",
    )
    both = merged(first, [row("zero2", 5, 0, 9, SECOND)], f"{RUN}{SECOND}\n\n    second")
    assert (
        line(row("zero1", 3, 0, 7, FIRST)) in both and line(row("zero2", 5, 0, 9, SECOND)) in both
    )
    assert line(row("zero2", 4, 1, 8, FIRST)) not in both
    assert (
        "In all 2 layouts, 8 faults, of which 0 were not handled rightly, and 16 clean steps"
        in both
    )
    assert both.count(RUN) == 2 and "    first" in both and "    second" in both


def test_a_run_that_no_row_comes_from_any_more_goes() -> None:
    first = merged("", [row("zero1", 3, 2, 7, FIRST)], f"{RUN}{FIRST}\n\n    first")
    assert "3 faults, of which 2 were not handled rightly" in first
    second = merged(first, [row("zero1", 3, 0, 7, SECOND)], f"{RUN}{SECOND}\n\n    second")
    assert second.count(RUN) == 1 and "    first" not in second
