"""Moments of the host's clock, and of a device that passes them later."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from yolods.traffic.moments import DeviceMoments, HostMoments


@dataclass
class Device:
    """A stand-in for a GPU: work is given to it, and it comes to it in its own time."""

    given: float = 0.0
    """Milliseconds of work so far."""
    at: float = 0.0
    """How far it has come."""

    def event(self) -> StreamEvent:
        return StreamEvent(self)


@dataclass
class StreamEvent:
    device: Device
    place: float | None = None

    def record(self) -> None:
        self.place = self.device.given

    def query(self) -> bool:
        assert self.place is not None
        return self.place <= self.device.at

    def elapsed_time(self, later: StreamEvent) -> float:
        if not (self.query() and later.query()):
            raise RuntimeError("not ready")
        assert self.place is not None and later.place is not None
        return later.place - self.place


def test_a_host_reads_its_clock() -> None:
    ticks = iter((1.0, 3.5))
    moments = HostMoments(lambda: next(ticks))
    begin, end = moments.now(), moments.now()
    assert moments.passed(end) and moments.seconds(begin, end) == 2.5


def test_a_device_is_asked_and_not_waited_for() -> None:
    device = Device()
    moments = DeviceMoments(device.event)
    begin = moments.now()
    device.given = 40.0
    end = moments.now()
    assert moments.passed(begin) and not moments.passed(end)
    with pytest.raises(RuntimeError):
        moments.seconds(begin, end)
    device.at = 40.0
    assert moments.passed(end) and moments.seconds(begin, end) == 0.04
