"""A rank starts no more loader processes than its share of the host's cores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from yolods.training.setup import loader_workers


@dataclass(frozen=True)
class Configured:
    """What `limit_workers` reads and changes."""

    workers: int
    notes: tuple[str, ...] = ("another",)


@pytest.mark.parametrize(
    ("asked", "cores", "ranks", "started"),
    [(2, 2, 2, 1), (8, 16, 2, 8), (8, 16, 4, 4), (0, 2, 2, 0), (1, 1, 8, 1)],
)
def test_fewer_workers_than_asked_for_are_told_of(monkeypatch, asked, cores, ranks, started):
    monkeypatch.setattr(loader_workers, "cores", lambda: cores)
    shared = loader_workers.limit_workers(Configured(asked), ranks)
    assert shared.workers == started
    said = (
        f"--workers {asked}: a rank starts {started}, its share of this host's cores ({cores} / "
        f"{ranks})",
    )
    assert shared.notes == ("another", *(said if started < asked else ()))
    assert (
        loader_workers.limit_workers(replace(shared, workers=asked), ranks).notes == shared.notes
    ), "once, after a resume too"
