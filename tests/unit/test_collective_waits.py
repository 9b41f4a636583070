"""Whose time it is when a rank stands still, on a device whose host runs ahead. On real ranks:
tests/dist."""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed import distributed_c10d

from yolods.config.deepspeed.yolods_block import WatchdogConfig
from yolods.distributed import collective_waits
from yolods.distributed.collective_waits import COLLECTIVES, Streams
from yolods.distributed.phases import PhaseTracker
from yolods.watchdog.failure_detector import Alarm, FailureDetector, Heartbeat

POLICY = WatchdogConfig()


@dataclass
class Stream:
    """A device's stream: what it was given, and how far it has come. A host never waits for it."""

    given: int = 0
    done: int = 0

    def launch(self) -> None:
        self.given += 1

    def event(self) -> Event:
        return Event(self)


@dataclass
class Event:
    stream: Stream
    place: int | None = None

    def record(self) -> None:
        self.place = self.stream.given

    def query(self) -> bool:
        return self.place is not None and self.place <= self.stream.done


@dataclass
class Rank:
    """A rank whose host has marked a phase that it knows, and reads from its device."""

    number: int
    stream: Stream = field(default_factory=Stream)
    tracker: PhaseTracker = field(default_factory=PhaseTracker)

    def __post_init__(self) -> None:
        self.streams = Streams(self.stream.event)
        self.tracker.ask(self.streams.wait)
        self.tracker.started()
        for _ in range(3):
            self.tracker.mark("gradients", step=self.number and 4)
            self.tracker.tick(0.1)

    def launch_step(self) -> None:
        """A kernel of its own, a collective, and another kernel."""
        self.stream.launch()
        with self.streams.around():
            self.stream.launch()
        self.stream.launch()

    def beat(self, number: int, seconds: float) -> Heartbeat:
        standing = self.tracker.tick(seconds)
        return Heartbeat(
            rank=self.number,
            host="h",
            pid=self.number,
            number=number,
            step=4,
            marks=standing.mark.count,
            doing=str(standing.mark),
            seconds=standing.seconds,
            usual=standing.usual,
            waiting=self.tracker.waits,
        )


def test_a_device_waits_from_where_its_stream_comes_to_a_collective_until_it_is_through() -> None:
    rank = Rank(0)
    rank.launch_step()
    seen = []
    for rank.stream.done in range(4):
        seen.append(rank.tracker.waits)
    assert seen == [False, True, False, False]


def test_a_host_that_is_held_up_in_the_call_does_what_its_device_does() -> None:
    """It meets a rank for the first time, which is late; or the queue is full, of its own device's
    work."""
    rank = Rank(0)
    rank.stream.launch()
    with rank.streams.around():
        assert not rank.tracker.waits, "the device is still at work of its own"
        rank.stream.done = 1
        assert rank.tracker.waits
    assert not rank.tracker.waits


def test_a_device_that_has_failed_does_not_take_the_watchdog_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = Rank(0)
    rank.launch_step()

    def fail(_: Event) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Event, "query", fail)
    assert not rank.tracker.waits


def test_the_others_are_waiting_for_a_device_that_never_ends_and_it_is_blamed() -> None:
    """Every host is held up in the same read, the stuck one's as well, in the phase that all
    know."""
    ranks = [Rank(0), Rank(1), Rank(2)]
    for rank in ranks:
        rank.launch_step()
        rank.stream.done = 1  # the others wait in the collective
    ranks[1].stream.done = 0  # this one is in a kernel of its own, for good
    detector, verdicts = FailureDetector(POLICY), []
    for second in range(1, 80):
        verdict = detector.check([rank.beat(second, 1.0) for rank in ranks], float(second))
        if verdict is not None:
            verdicts.append(verdict)
    assert verdicts and {each.rank for each in verdicts} == {1}
    assert isinstance(verdicts[-1], Alarm) and verdicts[-1].ends


def test_what_has_been_passed_is_forgotten_however_far_the_host_runs_ahead() -> None:
    rank = Rank(0)
    for _ in range(50):
        rank.launch_step()
    assert not rank.tracker.waits
    rank.stream.done = rank.stream.given - 2  # in the last collective
    assert rank.tracker.waits
    rank.stream.done = rank.stream.given
    rank.launch_step()
    assert len(rank.streams._given) == 1


def test_a_thread_that_works_for_the_main_one_marks_for_it() -> None:
    """On a GPU the hooks of a backward pass run in autograd's thread, while the main one is inside
    `backward`."""
    tracker, inside, go_on = PhaseTracker(), threading.Event(), threading.Event()

    def hook() -> None:
        with tracker.waiting():
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=hook)
    thread.start()
    assert inside.wait(10) and tracker.waits
    go_on.set()
    thread.join()
    assert not tracker.waits


NO_MEETING = {
    *(
        "get_backend",
        "get_rank",
        "get_world_size",
        "get_group_rank",
        "get_global_rank",
        "get_process_group_ranks",
    ),
    *(
        "get_backend_config",
        "get_pg_count",
        "destroy_process_group",
        "supports_complex",
        "record_comm",
    ),
}
"""Functions with a group that ask no other rank."""
NOT_USED = {
    "new_subgroups",
    "shrink_group",
    "split_group",
    "all_gather_single",
    "reduce_scatter_single",
}
"""Functions that neither DeepSpeed 0.19.8 nor this code calls."""


def test_every_function_in_which_ranks_meet_is_marked() -> None:
    public = {
        name
        for name in distributed_c10d.__all__
        if inspect.isfunction(getattr(distributed_c10d, name))
    }
    meeting = {
        name
        for name in public
        if {"group", "p2p_op_list", "ranks"}
        & inspect.signature(getattr(distributed_c10d, name)).parameters.keys()
    }
    assert meeting - NO_MEETING - NOT_USED <= set(COLLECTIVES)
    assert all(hasattr(dist, name) for name in COLLECTIVES)


@pytest.mark.parametrize("module", ["all_gather_single", "reduce_scatter_single", "split_group"])
def test_deepspeed_calls_no_function_that_is_not_marked(module: str) -> None:
    import deepspeed.comm.torch as backend

    assert f"{module}(" not in inspect.getsource(backend)


def test_the_watchdog_knows_no_file_of_anyone_by_its_name() -> None:
    """A renamed file changed once who was blamed."""
    package = Path(collective_waits.__file__).parents[1]
    files = ("distributed/collective_waits", "distributed/phases", "watchdog/failure_detector")
    for name in ("watchdog/watchdog", *files):
        code = (package / f"{name}.py").read_text(encoding="utf-8")
        assert ".py" not in code and "f_code" not in code and "co_filename" not in code, name
