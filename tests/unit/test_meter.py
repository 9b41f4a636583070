"""The meter between a rank and torch.distributed; on real ranks: tests/dist/test_traffic.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.unit.test_carried import Group
from tests.unit.test_moments import Device
from yolods.distributed import collective_waits
from yolods.distributed.world import Ranks
from yolods.traffic import meter as module
from yolods.traffic.meter import Meter, NoMeter, open_meter
from yolods.traffic.moments import HostMoments

FLOATS = torch.zeros(250)  # 1000 bytes, of which all_reduce on four ranks sends 1500


class Future:
    """Tells when it is asked to."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.tell = lambda: callback(self)

    def wait(self) -> None:
        self.waits()


class Work(dist.Work):
    """Of an asynchronous call."""

    def __init__(self) -> None:
        super().__init__()
        self.future = Future()

    def get_future(self) -> Any:
        return self.future


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(collective_waits, "_observer", None)
    monkeypatch.setattr(dist, "get_group_rank", lambda group, rank: rank - 10)
    monkeypatch.setattr(dist, "get_global_rank", lambda group, rank: rank + 10)
    return Clock()


def host_meter(clock: Clock) -> Meter:
    meter = Meter("gloo", HostMoments(clock))
    meter.begin()
    return meter


def take(meter: Meter, clock: Clock, seconds: float, function: str, *arguments: Any) -> Any:
    """A call that takes so long, and returns a work if it takes no time."""
    call = meter.before(function, arguments, {"group": Group()})
    clock.now += seconds
    work = None if seconds else Work()
    meter.after(call, work)
    return work


def wait(meter: Meter, clock: Clock, work: Work, seconds: float) -> None:
    call = meter.before("wait", (work,), {})
    clock.now += seconds
    meter.after(call, True)


def test_a_step_of_calls_that_wait(clock: Clock) -> None:
    meter = host_meter(clock)
    take(meter, clock, 0.25, "all_reduce", FLOATS)
    take(meter, clock, 0.5, "all_gather", None, FLOATS)
    with meter.ours():
        take(meter, clock, 0.25, "all_reduce", FLOATS[:25])
    assert meter.end(4.0) == {
        "communication/sent_mb": 0.00465,
        "communication/sent_mb_reduce": 0.0015,
        "communication/sent_mb_gather": 0.003,
        "communication/sent_mb_ours": 0.00015,
        "communication/calls": 3,
        "communication/calls_reduce": 1,
        "communication/calls_gather": 1,
        "communication/calls_ours": 1,
        "communication/seconds": 1.0,
        "communication/seconds_reduce": 0.25,
        "communication/seconds_gather": 0.5,
        "communication/seconds_ours": 0.25,
        "communication/still_share": 0.25,
        "communication/hidden_share": 0.0,
    }


def test_a_collective_beside_the_ranks_own_work(clock: Clock) -> None:
    """It takes a second, and the rank waits for the last quarter."""
    meter = host_meter(clock)
    work = take(meter, clock, 0.0, "all_reduce", FLOATS)
    clock.now = 0.75
    call = meter.before("wait", (work,), {})
    clock.now = 1.0
    work.future.tell()
    meter.after(call, True)
    found = meter.end(2.0)
    assert found["communication/seconds"] == 1.0
    assert found["communication/hidden_share"] == 0.75
    assert found["communication/still_share"] == 0.125


def test_a_boundary(clock: Clock) -> None:
    meter = host_meter(clock)
    take(meter, clock, 0.0, "isend", FLOATS, 13)
    work = take(meter, clock, 0.0, "irecv", FLOATS, 10)
    clock.now = 5.0
    wait(meter, clock, work, 0.5)
    found = meter.end(10.0)
    assert found["communication/sent_mb_boundary"] == 0.001
    assert found["communication/calls_boundary"] == 1
    assert found["communication/seconds_boundary"] == 0.5
    sent, received = meter._epoch.newest.timed  # type: ignore[union-attr]
    assert (sent.peer, sent.sent, received.peer, received.sent) == (13, 1000, 10, 0)
    assert sent.later and received.held == ((0.0, 0.0), (5.0, 5.5))


def test_of_functions_that_call_each_other_the_outermost_counts(clock: Clock) -> None:
    meter = host_meter(clock)
    outer = meter.before("all_reduce", (FLOATS,), {"group": Group()})
    assert meter.before("all_reduce", (FLOATS,), {"group": Group()}) is None
    assert meter.before("wait", (Work(),), {}) is None
    meter.after(None, None)
    meter.after(outer, None)
    assert meter.end(1.0)["communication/calls"] == 1


def test_functions_for_objects_are_seen_by_what_they_call(clock: Clock) -> None:
    meter = host_meter(clock)
    assert meter.before("broadcast_object_list", ([None],), {}) is None
    take(meter, clock, 0.1, "broadcast", FLOATS, 11)
    assert meter.end(1.0)["communication/calls_ours"] == 1


def test_after_a_failure_it_goes_on(clock: Clock) -> None:
    meter = host_meter(clock)
    meter.failed(meter.before("all_reduce", (FLOATS,), {"group": Group()}))
    take(meter, clock, 0.5, "all_reduce", FLOATS)
    assert meter.end(1.0)["communication/seconds"] == 0.5


def test_the_work_of_joined_calls_is_waited_for(clock: Clock) -> None:
    """torch gives a placeholder for a call that it will join with others, and their work later."""
    joined = Work()
    joined.get_future = None  # type: ignore[method-assign,assignment]
    meter = host_meter(clock)
    call = meter.before("all_gather_into_tensor", (None, FLOATS), {"group": Group()})
    meter.after(call, joined)
    wait(meter, clock, Work(), 0.5)
    found = meter.end(1.0)
    assert (found["communication/calls"], found["communication/seconds"]) == (1, 0.5)


def test_between_steps_only_bytes_count(clock: Clock) -> None:
    meter = host_meter(clock)
    meter.end(1.0)
    take(meter, clock, 0.5, "all_reduce", FLOATS)
    assert meter.report(Ranks(0, 1, 0, "h", torch.device("cpu"))).ranks[0].between == 1500  # type: ignore[union-attr]


def test_a_device_is_read_in_a_later_step_and_never_waited_for(clock: Clock) -> None:
    device = Device()
    meter = Meter("nccl", device.moments())
    meter.begin()
    call = meter.before("all_reduce", (FLOATS,), {"group": Group()})
    device.given = 250.0
    meter.after(call, None)
    first = meter.end(1.0)
    assert first["communication/sent_mb"] == 0.0015 and "communication/seconds" not in first
    device.at = 250.0
    meter.begin()
    second = meter.end(1.0)
    assert second["communication/sent_mb"] == 0.0
    assert (second["communication/seconds"], second["communication/still_share"]) == (0.0, 0.0)
    report = meter.report(Ranks(0, 1, 0, "h", torch.device("cpu")))
    assert report is not None and report.seconds == 0.125, "the mean of two steps"


def test_a_device_hides_what_its_streams_do_at_the_same_time(clock: Clock) -> None:
    """The collective takes 400 ms, and the rank waits for the last 100."""
    device = Device()
    meter = Meter("nccl", device.moments())
    meter.begin()
    call, work = meter.before("all_reduce", (FLOATS,), {"group": Group()}), Work()
    work.future.waits = lambda: setattr(device, "aside", 400.0)
    meter.after(call, work)
    device.given = 300.0  # the main stream's own work, before it waits
    call = meter.before("wait", (work,), {})
    device.given = 400.0
    meter.after(call, True)
    device.at = 399.0
    assert "communication/seconds" not in meter.end(1.0)
    device.at = 400.0
    meter.begin()
    meter.end(1.0)
    report = meter.report(Ranks(0, 1, 0, "h", torch.device("cpu")))
    assert report is not None
    assert report.seconds == pytest.approx(0.2) and report.hidden == pytest.approx(0.75)


def test_one_process_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(module, "observe", told.append)
    alone = Ranks(0, 1, 0, "h", torch.device("cpu"))
    meter = open_meter(alone)
    meter.begin()
    with meter.ours():
        pass
    assert type(meter) is NoMeter
    assert (meter.end(1.0), meter.report(alone), told) == ({}, None, [])
    assert isinstance(open_meter(Ranks(0, 2, 0, "h", torch.device("cpu"))), Meter)
