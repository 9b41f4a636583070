"""Moments of the host's clock, and of a device that passes them later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolods.traffic.moments import DeviceMoments, HostMoments, moments_of


@dataclass
class Device:
    """A stand-in for a GPU: work is given to it, and it comes to it in its own time."""

    given: float = 0.0
    """Milliseconds of work so far."""
    at: float = 0.0
    """How far it has come."""

    aside: float | None = None
    """Of the stream on which nobody computes, while it is current: what it waits for."""

    def event(self) -> StreamEvent:
        return StreamEvent(self)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within, that stream is current."""
        self.aside = self.given
        yield
        self.aside = None

    def moments(self) -> DeviceMoments:
        return DeviceMoments(self.event, self.beside)


@dataclass
class StreamEvent:
    device: Device
    place: float | None = None

    def record(self) -> None:
        self.place = self.device.given if self.device.aside is None else self.device.aside

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
    moments = device.moments()
    begin = moments.now()
    device.given = 40.0
    end = moments.now()
    assert moments.passed(begin) and not moments.passed(end)
    with pytest.raises(RuntimeError):
        moments.seconds(begin, end)
    device.at = 40.0
    assert moments.passed(end) and moments.seconds(begin, end) == 0.04


def test_an_event_behind_a_collective_stands_on_the_stream_aside() -> None:
    """The collective ends 40 ms after the work of the main stream, which goes on."""
    device, noted = Device(given=10.0), []
    moments = device.moments()

    def until_it_ends() -> None:
        assert device.aside is not None, "the main stream waits"
        device.aside = 50.0

    work: Any = SimpleNamespace(get_future=lambda: SimpleNamespace(wait=until_it_ends))
    begin = moments.now()
    moments.at_end_of(work, noted.append)
    assert not noted[0].query() and device.given == 10.0
    device.at = 50.0
    assert moments.seconds(begin, noted[0]) == 0.04


def test_a_cpu_is_measured_by_the_hosts_clock() -> None:
    assert isinstance(moments_of(torch.device("cpu")), HostMoments)
