"""The rows of the screen's tables in both widths."""

from __future__ import annotations

import io
import math

import pytest

from yolods.telemetry.screen.rows import NARROW, ULTRALYTICS, columns_of

LOSSES = (1.25, 0.0001234, 12345.6)


def test_wide_rows_are_those_of_ultralytics() -> None:
    row = ULTRALYTICS.train("1/3", "0G", LOSSES, (33, 320))
    assert row == ("%11s" * 2 + "%11.4g" * 5) % ("1/3", "0G", *LOSSES, 33, 320)
    values = (0.5, 0.25, 0.125, 0.1)
    shown = ("%22s" + "%11i" * 2 + "%11.3g" * 4) % ("all", 8, 20, *values)
    assert ULTRALYTICS.val("all", 8, 20, values) == shown


def test_narrow_rows_leave_room_for_progress_and_lose_no_number() -> None:
    row = NARROW.train("300/300", "71.3G", LOSSES, (5000, 1280))
    assert row.split() == ["300/300", "71.3G", "1.25", "0.0001234", "1.235e+04", "5000", "1280"]
    assert len(row) == len(NARROW.train_header) <= 80 - len(" 1000/1000 <59:59") - 1
    row = NARROW.val("all", 5000, 36781, (0.123, 0.00123, 0.333, 8.33e-05))
    assert row.split() == ["all", "5000", "36781", "0.123", "0.00123", "0.333", "8.33e-05"]
    assert len(row) == len(NARROW.val_header) < 80


def test_a_long_name_is_cut_on_a_narrow_terminal_only() -> None:
    name = "a class with a long name"
    assert (
        "…" in NARROW.val(name, 1, 1, (0.5,) * 4) and len(NARROW.val(name, 1, 1, (0.5,) * 4)) < 80
    )
    assert name in ULTRALYTICS.val(name, 1, 1, (0.5,) * 4)


def test_a_batch_that_was_not_seen_has_dashes_and_no_zeros() -> None:
    assert NARROW.train("2/3", "0G", LOSSES, None).split()[-2:] == ["-", "-"]


@pytest.mark.parametrize(("told", "columns"), [("97", 97), ("0", math.inf)])
def test_width_of_a_stream_without_a_descriptor(
    monkeypatch: pytest.MonkeyPatch, told: str, columns: float
) -> None:
    monkeypatch.setenv("COLUMNS", told)
    if told == "0":
        monkeypatch.setattr(
            "shutil.get_terminal_size", lambda: __import__("os").terminal_size((0, 0))
        )
    assert columns_of(io.StringIO()) == columns
