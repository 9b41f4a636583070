"""The record of training with faults tells both signs of a difference, over all seeds in it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.drive_faulted import disturb
from benchmarks.faulted import differences, merged
from benchmarks.joined import RUN

FIRST, SECOND = "2026-01-01 10:00 UTC", "2026-01-02 10:00 UTC"


def row(name: str, score: str, date: str) -> list[str]:
    return [name, score, score, "10", "none", "99", date]


def record(before: str, clean: str, faults: str, seed: int, date: str) -> str:
    rows = [row(f"clean, seed {seed}", clean, date), row(f"with faults, seed {seed}", faults, date)]
    rows.append(row(f"with faults, stock, seed {seed}", "0.100", date))
    return merged(before, rows, f"{RUN}{date}", 0.03)


def test_a_run_that_ends_above_the_clean_one_is_not_near_it() -> None:
    text = record("", "0.700", "0.760", 0, FIRST)
    assert "seed 0 +0.060; mean +0.060 of 1" in text
    assert (
        "below the clean run (mean): met." in text and "in either direction (mean): missed." in text
    )


def test_a_run_that_ends_below_misses_both() -> None:
    text = record("", "0.700", "0.660", 0, FIRST)
    assert (
        "below the clean run (mean): missed." in text
        and "in either direction (mean): missed." in text
    )


def test_seeds_of_several_days_make_one_mean() -> None:
    text = record(record("", "0.700", "0.760", 0, FIRST), "0.700", "0.640", 1, SECOND)
    assert "seed 0 +0.060, seed 1 -0.060; mean -0.000 of 2" in text or "mean +0.000 of 2" in text
    assert text.count("met.") == 2 and text.count(RUN) == 2


def test_no_score_counts_as_zero_and_a_run_without_its_pair_not_at_all() -> None:
    rows = [
        row("clean, seed 0", "0.700", FIRST),
        row("with faults, seed 0", "-", FIRST),
        row("clean, seed 1", "1", FIRST),
    ]
    assert differences(rows) == {"seed 0": -0.7}


def test_every_so_many_steps_get_a_fault_and_all_that_a_run_gives_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, taken = [], []
    injector = SimpleNamespace(begin=lambda fault, batches: begun.append((fault, batches)))
    monkeypatch.setattr("tests.faults.tape.Injector", lambda engine: injector)
    monkeypatch.setattr("tests.faults.tape.convolutions", lambda engine: [])
    monkeypatch.setattr("tests.faults.tape.draw", lambda *_, **__: ["first", "second"])
    engine = SimpleNamespace(
        ranks=SimpleNamespace(size=2),
        train_step=lambda *given, **named: taken.append((given, named)),
    )
    disturb(SimpleNamespace(engine=engine), every=2)
    step = SimpleNamespace(batches=3)
    for _ in range(4):
        engine.train_step(step, "batches", 64, stop=True)
    assert begun == [(None, 3), ("first", 3), (None, 3), ("second", 3)]
    assert taken == [((step, "batches", 64), {"stop": True})] * 4
