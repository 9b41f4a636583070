"""A stage's clock adds up a step's passes and waits, and begins anew with the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yolods.engine.pipeline.stage_stats import Gauge, summarise
from yolods.engine.pipeline.stage_timer import StageTimer, StageTimes


class Hands:
    """A clock's hands, moved by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr("yolods.engine.pipeline.stage_timer.time.perf_counter", hands)
    return hands


def test_passes_waits_and_the_whole_step(hands):
    clock = StageTimer(torch.device("cpu"))

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
        with clock.weights():
            hands.now += 3.0
        clock.stop()
        hands.now += 50.0  # the optimizer's step is not the pipeline's time
        assert clock.times(7) == StageTimes(
            forward=3.0, backward=4.0, waiting=0.5, total=10.5, sent=7, weights=3.0
        )


def test_before_the_first_step_nothing_has_taken_time(hands):
    assert StageTimer(torch.device("cpu")).times(0) == StageTimes(0, 0, 0.0, 0.0, 0)


class Stream:
    """A GPU's stream that has been given work and has not begun it: its time has nothing to do with
    the host's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits = 0


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[StageTimer, Stream]:
    stream = Stream()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = stream.now

        def elapsed_time(self, end: Any) -> float:
            return 1e3 * (end.at - self.at)

        def synchronize(self) -> None:
            stream.waits += 1

    monkeypatch.setattr("torch.cuda.Event", Event)
    return StageTimer(torch.device("cuda")), stream


def test_on_a_gpu_the_whole_step_is_timed_by_the_device_as_its_passes_are(hands, monkeypatch):
    """The host, which runs ahead, has given the device a step of 12 s in no time. By its own clock
    the step took 0 s, and the stage seemed busy for all of it."""
    clock, stream = on_gpu(monkeypatch)

    def wait() -> None:
        stream.now += 2.0

    clock.start()
    for _ in range(2):
        clock.waiting(wait)
        with clock.forward():
            stream.now += 1.0
        with clock.backward():
            stream.now += 3.0
    clock.stop()
    stream.now += 50.0
    assert stream.waits == 0, "a step waits for nothing"
    assert clock.times(7) == StageTimes(forward=2.0, backward=6.0, waiting=4.0, total=12.0, sent=7)
    assert stream.waits == 1
    told = summarise([Gauge(0, clock.times(0), 0.0, 0)], 2)
    assert told.idle == pytest.approx(4 / 12)


def test_on_a_gpu_nothing_is_waited_for_before_the_first_step(monkeypatch):
    clock, stream = on_gpu(monkeypatch)
    assert clock.times(0) == StageTimes(0, 0, 0, 0, 0) and stream.waits == 0
