"""Who waits for other ranks says so where the wait is: no file's name tells."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from yolods.cluster.watchdog import WAITS, in_collective
from yolods.config.own import OwnConfig
from yolods.stability.gradients import Decision
from yolods.stability.step import Stability, StockStability


class Waits:
    """Counts the time that is given to others."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.count += 1
        yield


def gradients() -> SimpleNamespace:
    """Of two parameters, on one rank."""
    parts = [torch.tensor([3.0]), torch.tensor([4.0])]
    return SimpleNamespace(
        names=["a", "b"], sharded=True, decision=Decision(), slices=lambda: parts, weights=lambda: parts
    )


@pytest.mark.parametrize("kind", ["own", "stock"])
def test_the_one_wait_of_a_step_is_told_of(kind: str) -> None:
    waits = Waits()
    if kind == "stock":
        judge = StockStability(SimpleNamespace(fp16_enabled=lambda: False), 1, by_hand=False, waiting=waits)
    else:
        judge = Stability(
            gradients(),
            ["a", "b"],
            OwnConfig(),
            max_norm=10.0,
            scale=None,
            by_hand=False,
            replica=0,
            ranks=1,
            device=torch.device("cpu"),
            waiting=waits,
        )
    outcome = judge.judge(torch.tensor([1.0, 1.0, 1.0, 5.0, 0.0]), 1, can_return=False)
    assert waits.count == 1
    assert outcome.instances == 5


def test_the_watchdog_knows_no_file_of_ours_by_its_name() -> None:
    assert [place for place in WAITS if "yolods" in place] == []
    assert not in_collective(threading.main_thread())
