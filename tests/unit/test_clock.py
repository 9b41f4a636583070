"""A stage's clock adds up a step's passes and waits, and begins anew with the next."""

from __future__ import annotations

import pytest
import torch

from yolods.engine.clock import StageClock, StageTimes


class Hands:
    """A clock's hands, moved by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr("yolods.engine.clock.time.perf_counter", hands)
    return hands


def test_passes_waits_and_the_whole_step(hands):
    clock = StageClock(torch.device("cpu"))

    def wait() -> str:
        hands.now += 0.25
        return "arrived"

    for _ in range(2):  # the second step counts from zero again
        clock.start()
        for seconds in (1.0, 2.0):
            with clock.forward():
                hands.now += seconds
            assert clock.waiting(wait) == "arrived"
        with clock.backward():
            hands.now += 4.0
        clock.stop()
        hands.now += 50.0  # the optimizer's step is not the pipeline's time
        assert clock.times(7) == StageTimes(forward=3.0, backward=4.0, waiting=0.5, total=7.5, sent=7)


def test_before_the_first_step_nothing_has_taken_time(hands):
    assert StageClock(torch.device("cpu")).times(0) == StageTimes(0, 0, 0.0, 0.0, 0)
