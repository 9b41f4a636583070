"""What the pass over train images for BatchNorm's statistics says and heeds."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from yolods.system import interrupt
from yolods.training import precise_bn
from yolods.training.precise_bn import TrainStatistics

BATCHES = [
    {"img": "a", "real": 2},
    {"img": "b", "real": 1, "replaced": ["gone.jpg"]},
    {"img": "c", "real": 0},
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Statistics over `BATCHES` on one rank, and the passes that its engine was given."""
    monkeypatch.setattr(precise_bn, "eval_batches", lambda *_, **__: BATCHES)
    monkeypatch.setattr(precise_bn, "load", lambda *_, **__: iter(BATCHES))
    given: list[tuple[Any, int]] = []
    share = SimpleNamespace(dp_rank=0, dp_size=1, first_stage=True, alone=True)
    engine = SimpleNamespace(share=share, restate_statistics=given.extend)
    ranks = SimpleNamespace(to_main=lambda value: [value], from_main=lambda value: value)
    dataset = SimpleNamespace(exclude=lambda images: None, source=SimpleNamespace(place=str))
    monkeypatch.setattr(precise_bn, "len", lambda _: 3, raising=False)
    statistics = TrainStatistics(dataset, ranks, engine, forward_batch=2, workers=0)
    telemetry = SimpleNamespace(val_begin=lambda *_: None, val_progress=lambda: None)
    return SimpleNamespace(call=lambda: statistics(telemetry), given=given)


def test_an_image_that_cannot_be_read_is_said(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run.call()
    assert run.given == [("a", 2), ("b", 1), ("c", 0)]
    assert [record.getMessage() for record in caplog.records] == [
        "gone.jpg could not be read; a grey image replaces it in BatchNorm's statistics"
    ]


def test_a_stop_is_heeded_between_two_passes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "asked", lambda: True)
    with pytest.raises(interrupt.Stopped):
        run.call()
    assert run.given == []
