"""Phases and calls of a rank between two moments, by the host's clock and by a device's events."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from tests.traced import part
from tests.unit.test_meter import FLOATS, Clock, clock, host_meter, take, wait  # noqa: F401
from yolods.distributed.phases import PhaseTracker
from yolods.trace import recorder as module
from yolods.trace.recorder import Recorder
from yolods.traffic.meter import Meter, NoMeter
from yolods.traffic.moments import HostMoments


@pytest.fixture
def tracker() -> PhaseTracker:
    return PhaseTracker()


def recorder(clock: Clock, meter: NoMeter, tracker: PhaseTracker) -> Recorder:  # noqa: F811
    return Recorder(HostMoments(clock), meter, tracker=tracker)


@pytest.fixture(autouse=True)
def same_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:  # noqa: F811
    monkeypatch.setattr(module.time, "perf_counter", clock)


def test_what_is_marked_and_called_in_between(clock: Clock, tracker: PhaseTracker) -> None:  # noqa: F811
    meter = host_meter(clock)
    tracker.mark("before")
    take(meter, clock, 1.0, "all_reduce", FLOATS)
    one = recorder(clock, meter, tracker)
    one.start()
    tracker.mark("between steps", step=4)
    clock.now += 0.5
    tracker.mark("backward", 0)
    work = take(meter, clock, 0.0, "all_reduce", FLOATS)
    clock.now += 0.5
    work.future.tell()
    clock.now += 0.5
    wait(meter, clock, work, 0.25)
    meter.end(3.0)
    take(meter, clock, 0.75, "all_gather", None, FLOATS)  # after the step, as a checkpoint does
    one.stop()
    tracker.mark("behind")
    take(meter, clock, 1.0, "all_reduce", FLOATS)
    parts, calls = one.read()
    assert parts == (part(1.0, 1.5, "between steps"), part(1.5, 3.5, "backward", 0))
    assert [(each.kind, each.begin, each.end) for each in calls] == [
        ("reduce", 1.5, 2.75),
        ("gather", 2.75, 3.5),
    ]
    assert calls[0].held == ((1.5, 1.5), (2.5, 2.75)) and calls[0].sent == 1500


def test_a_call_that_broke_has_no_time(clock: Clock, tracker: PhaseTracker) -> None:  # noqa: F811
    meter = host_meter(clock)
    one = recorder(clock, meter, tracker)
    one.start()
    tracker.mark("backward", step=4)
    meter.failed(meter.before("all_reduce", (FLOATS,), {"group": dist.group.WORLD}))
    take(meter, clock, 1.0, "all_reduce", FLOATS)
    one.stop()
    assert [each.end for each in one.read()[1]] == [1.0]


def test_a_single_process_has_phases_only(clock: Clock, tracker: PhaseTracker) -> None:  # noqa: F811
    one = recorder(clock, NoMeter(), tracker)
    one.stop()  # before a start: nothing
    one.start()
    tracker.mark("forward", 1, step=4)
    clock.now += 2.0
    one.stop()
    one.stop()
    assert one.read() == ((part(0.0, 2.0, "forward", 1),), ())


def test_a_device_is_waited_for_only_before_and_behind(tracker: PhaseTracker) -> None:
    """Moments are events; their times are asked for when all is over."""
    seen: list[str] = []

    class Events(HostMoments):
        def __init__(self) -> None:
            self.placed = 0

        def now(self) -> int:
            seen.append("event")
            self.placed += 1
            return self.placed

        def seconds(self, begin: int, end: int) -> float:
            seen.append("read")
            return float(end - begin)

    one = Recorder(Events(), NoMeter(), settle=lambda: seen.append("settle"), tracker=tracker)
    one.start()
    tracker.mark("forward", step=4)
    tracker.mark("backward")
    one.stop()
    assert seen == ["event", "settle", "event", "event", "event"]
    parts, _ = one.read()
    assert seen[5] == "settle" and set(seen[6:]) == {"read"}
    assert [each.end - each.begin for each in parts] == [1.0, 1.0]
    assert Meter.keep is not NoMeter.keep
