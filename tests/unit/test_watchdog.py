"""What a rank's watchdog concludes from what it hears, on a clock of its own. Real:
tests/faults/test_processes.py."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stores import ALONE
from yolods.config.deepspeed.yolods_block import WatchdogConfig
from yolods.distributed.phases import PHASES, Mark, Standing
from yolods.distributed.store import KeyValueStore, open_store
from yolods.distributed.world import LOST, Ranks
from yolods.system import interrupt
from yolods.watchdog import watchdog as module
from yolods.watchdog.failure_detector import Alarm
from yolods.watchdog.watchdog import (
    ALONE_SECONDS,
    UNREACHABLE_SECONDS,
    Watchdog,
    _Exchange,
    _Launcher,
    _StepTimes,
)

POLICY = WatchdogConfig(silence_seconds=7, stall_seconds=7)


def standing(step: int, *, slow: bool = False) -> Standing:
    return Standing(Mark(step, "forward", 0, 5, 0, slow), 0.1, 0.1)


@pytest.fixture
def kv_store() -> KeyValueStore:
    return open_store(ALONE)


@pytest.fixture
def watchdog(kv_store: KeyValueStore, monkeypatch, tmp_path) -> Watchdog:
    """Of rank 1 of 2, whose threads and sidecar do not run."""
    monkeypatch.setattr(_Launcher, "mine", classmethod(lambda cls: None))
    made = Watchdog(kv_store, Ranks(1, 2, 1, "worker-1", ALONE.device), POLICY, tmp_path)
    made._sidecar = SimpleNamespace(leave=lambda: None, tell=lambda line: None)
    return made


def heard(watchdog: Watchdog, now: float, **changes: Any) -> Alarm | None:
    """The verdict at a time, after some of what the exchange knows has changed."""
    watchdog._now = now
    for name, value in changes.items():
        setattr(watchdog._exchange, name, value)
    return watchdog._judge()


def test_a_store_that_is_silent_means_that_rank_0_is_lost(watchdog: Watchdog):
    beat = watchdog._beat(standing(4), False)
    beat = type(beat)(**{**asdict(beat), "rank": 0, "host": "worker-0"})
    assert heard(watchdog, 1.0, answers=1, heard=[beat]) is None
    assert heard(watchdog, 7.9) is None
    beat = type(beat)(**{**asdict(beat), "number": 9})
    assert heard(watchdog, 8.5, answers=2, heard=[beat]) is None, "an answer starts the time anew"
    verdict = heard(watchdog, 15.6)
    assert verdict is not None and (verdict.rank, verdict.ends) == (0, True)
    assert verdict.text == (
        f"rank 0 on worker-0 (process {os.getpid()}), which relays the heartbeats, has not "
        "answered for 7 s; it was in step 4, forward 0"
    )


def test_a_store_that_refuses_is_given_the_time_that_an_orderly_end_takes(watchdog: Watchdog):
    assert heard(watchdog, UNREACHABLE_SECONDS - 0.1, refused=True) is None
    verdict = heard(watchdog, UNREACHABLE_SECONDS + 0.1)
    assert verdict is not None and verdict.text == "rank 0, which relays the heartbeats, is gone"


def test_what_rank_0_has_found_is_believed(watchdog: Watchdog):
    found = Alarm(3, True, "rank 3 is lost")
    assert heard(watchdog, 0.0, verdict=asdict(found)) == found


def test_without_its_launcher_a_rank_stops_as_on_request_and_ends_where_that_takes_too_long(
    watchdog: Watchdog, monkeypatch, caplog
):
    asked: list[bool] = []
    monkeypatch.setattr(interrupt, "abandon", lambda: asked.append(True))
    watchdog._launcher = SimpleNamespace(gone=lambda: "the launcher of {} is gone")
    with caplog.at_level(logging.ERROR):
        assert heard(watchdog, 5.0) is None and heard(watchdog, 5.0 + ALONE_SECONDS) is None
    assert asked == [True] and caplog.messages == [
        "the launcher of rank 1 on worker-1 is gone; stopping"
    ]
    verdict = heard(watchdog, 5.1 + ALONE_SECONDS)
    assert verdict == Alarm(
        1, True, "the launcher of rank 1 on worker-1 is gone, and the rank does not stop"
    )


def test_a_warning_is_said_by_rank_0_and_ends_nothing(watchdog: Watchdog, monkeypatch, caplog):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended"))
    with caplog.at_level(logging.WARNING):
        watchdog._act(Alarm(2, False, "rank 2 is slow"))
        assert caplog.messages == []
        watchdog._act(Alarm(0, False, "rank 0 is slow"))  # it may be the one that cannot say so
    assert caplog.messages == ["rank 0 is slow"]


def test_a_loss_ends_the_process_with_its_stacks_in_the_run_s_folder(
    watchdog: Watchdog, monkeypatch, caplog, tmp_path
):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with caplog.at_level(logging.ERROR):
        watchdog._act(Alarm(0, True, "rank 0 is lost"))
    assert codes == [LOST] and caplog.messages == ["rank 0 is lost; ending the run"]
    stacks = (tmp_path / "logs" / "stacks-rank1.txt").read_text()
    assert stacks.splitlines()[0].endswith(str(PHASES.now)) and "_write_stacks" in stacks


def test_beats_go_over_the_store_and_rank_0_hears_all(watchdog: Watchdog, kv_store: KeyValueStore):
    zero = _Exchange(kv_store, Ranks(0, 2, 0, "worker-0", ALONE.device))
    kv_store.put("verdict", None)
    beat = watchdog._beat(standing(3), True)
    watchdog._exchange.put(beat)

    def once(exchange: _Exchange) -> None:
        exchange.stop.wait = lambda seconds: exchange.stop.set()
        exchange.run()

    once(zero)
    assert zero.heard == [beat] and (zero.answers, zero.refused) == (1, False)
    zero.say(Alarm(1, True, "it is"))
    once(watchdog._exchange)
    assert watchdog._exchange.verdict == {"rank": 1, "ends": True, "text": "it is"}
    assert watchdog._exchange.heard == [], "rank 0 has put none"


def test_a_store_that_is_gone_ends_the_exchange_and_no_thread_with_a_traceback():
    def gone(*_: Any) -> None:
        raise RuntimeError("Connection reset")

    exchange = _Exchange(
        SimpleNamespace(put=gone, get=gone, clone=lambda: SimpleNamespace(put=gone)), ALONE
    )
    exchange.run()
    exchange.say(Alarm(0, True, ""))
    assert exchange.refused and exchange.answers == 0


def test_a_step_s_own_time_is_what_it_does_not_wait_for_others():
    times = _StepTimes()
    for tick in range(
        200
    ):  # 20 seconds at ten ticks a second, a step a second, of which it waits for half
        times.count(standing(1 + tick // 10), 0.1, waits=tick % 10 >= 5)
    number, seconds = times.own
    assert number == 1 and seconds == pytest.approx(0.5, rel=0.1)
    before = times.own
    for tick in range(300):  # drawing is rank 0's alone, and before the first step everything is
        times.count(standing(0 if tick % 2 else 30, slow=True), 0.1, waits=False)
    assert times.own == before


def test_the_launcher_is_gone_once_another_is_the_parent(monkeypatch):
    launcher = _Launcher(os.getppid(), module._parent(os.getppid()))
    assert launcher.gone() is None
    assert (
        _Launcher(os.getppid() + 1, None).gone()
        == f"the launcher of {{}} (process {os.getppid() + 1}) is gone"
    )
    monkeypatch.setattr(module, "_parent", lambda pid: 1)
    assert (
        _Launcher(os.getppid(), 77).gone()
        == "the process that started the launcher of {} (process 77) is gone"
    )
    monkeypatch.setattr(module, "_parent", lambda pid: None)
    assert _Launcher(os.getppid(), 77).gone() is None, "it cannot be told"
    assert _Launcher.mine() is None, "pytest was started by something else"


def test_a_disabled_watchdog_starts_nothing_and_leaves_errors_alone(kv_store: KeyValueStore):
    threads = threading.active_count()
    with (
        pytest.raises(ValueError, match="mine"),
        Watchdog(kv_store, ALONE, WatchdogConfig(enabled=False), None),
    ):
        assert threading.active_count() == threads
        raise ValueError("mine")
