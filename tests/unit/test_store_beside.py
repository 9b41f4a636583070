"""Checkpoints that a thread writes hold what was there when they were asked for, and their failures
are told later."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stores import ALONE, MODEL, Engine
from yolods.checkpoint import store as module
from yolods.checkpoint.state import UNCHANGED
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.checkpoint.verify import newest_in
from yolods.device.host_copy import HostCopy
from yolods.distributed.store import open_store
from yolods.errors import UserError


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, ALONE, keep=3, model=MODEL, kv_store=open_store(ALONE))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, no rank's file is written."""
    opened, write = threading.Event(), module.write_rank

    def wait_and_write(*given: Any) -> Any:
        assert opened.wait(20)
        return write(*given)

    monkeypatch.setattr(module, "write_rank", wait_and_write)
    yield opened
    opened.set()


def test_what_is_written_is_what_was_there_when_it_was_asked_for(
    tmp_path: Path, gate: threading.Event
) -> None:
    """Training goes on, writing into the engine's own tensors, before a byte is written."""
    store, engine = store_in(tmp_path), Engine()
    expected = [shard.clone() for shard in engine.held]
    torch.manual_seed(3)
    store.save(engine, Progress(step=1))
    drawn = torch.rand(3)
    for shard in engine.held:
        shard.fill_(-1)
    assert newest_in(tmp_path) is None
    gate.set()
    store.wait()
    fresh = Engine()
    assert store_in(tmp_path).load(fresh).step == 1
    assert all(map(torch.equal, fresh.loaded["masters"], expected))
    assert torch.equal(torch.rand(3), drawn)


def test_each_of_several_holds_its_own(tmp_path: Path) -> None:
    """They share the memory that they are copied to."""
    store, engine = store_in(tmp_path), Engine()
    for step in (1, 2, 3):
        for shard in engine.held:
            shard.fill_(step)
        store.save(engine, Progress(step=step))
    store.wait()
    for step in (3, 2, 1):
        (tmp_path / "latest").write_text(f"step{step:08d}")
        fresh = Engine()
        assert store_in(tmp_path).load(fresh).step == step
        assert all(bool((shard == step).all()) for shard in fresh.loaded["masters"])


def fail(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_is_told_once_by_whatever_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line = (
        r"^the checkpoint step0000000{} could not be written: rank 0 on here: \[Errno 28\] No "
        "space left on device$"
    )
    store = store_in(tmp_path)
    store.save(Engine(), Progress(step=1))
    store.wait()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_rank", fail)
        store.save(Engine(), Progress(step=2))
        with pytest.raises(OSError, match=line.format(2)):
            _until(store.check)
        store.check()
        store.save(Engine(), Progress(step=3))
        store._background.join(20)
    with pytest.raises(OSError, match=line.format(3)):
        store.save(Engine(), Progress(step=4))
    store.wait()
    assert newest_in(tmp_path) == tmp_path / "step00000004", (
        "a failure of the one before has kept this one from disk"
    )
    monkeypatch.setattr(module, "write_rank", fail)
    with store:
        store.save(Engine(), Progress(step=5))
    assert caplog.messages == [
        "the checkpoint step00000005 could not be written: rank 0 on here: [Errno 28] No space "
        "left on device; the earlier checkpoint is kept"
    ]


def _until(ask: Any) -> None:
    """Ask again and again, as a run does after each step."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ask()
        time.sleep(0.01)


def test_a_mistake_of_ours_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "publish", lambda *_: {}["nothing"])
    store = store_in(tmp_path)
    store.save(Engine(), Progress(step=1))
    with pytest.raises(KeyError, match="nothing"):
        store.wait()


def test_a_save_waits_for_the_one_before_and_says_so(
    tmp_path: Path,
    gate: threading.Event,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "NOTICED_SECONDS", 0.1)
    store = store_in(tmp_path)
    store.save(Engine(), Progress(step=1))
    threading.Timer(0.4, gate.set).start()
    began = time.monotonic()
    store.save(Engine(), Progress(step=2))
    assert time.monotonic() - began > 0.3
    assert newest_in(tmp_path) == tmp_path / "step00000001"
    store.wait()
    assert newest_in(tmp_path) == tmp_path / "step00000002"
    assert set(caplog.messages) == {"a checkpoint is still being written; the run waits for it"}


@pytest.mark.parametrize(
    "leaving", [None, UserError("stop"), KeyboardInterrupt()], ids=["end", "stop", "Ctrl-C"]
)
def test_a_run_that_ends_waits_for_its_last_checkpoint(
    tmp_path: Path, gate: threading.Event, leaving: BaseException | None
) -> None:
    with suppress(UserError, KeyboardInterrupt), store_in(tmp_path) as store:
        store.save(Engine(), Progress(step=1))
        threading.Timer(0.2, gate.set).start()
        if leaving:
            raise leaving
    assert newest_in(tmp_path) == tmp_path / "step00000001"


def test_a_run_that_breaks_does_not_wait_for_what_cannot_come(
    tmp_path: Path,
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "GONE_SECONDS", 0.1)
    with pytest.raises(ZeroDivisionError), store_in(tmp_path) as store:
        store.save(Engine(), Progress(step=1))
        raise ZeroDivisionError
    assert caplog.messages == [
        "a checkpoint is still being written after 0 s; no longer waiting for it; the earlier "
        "checkpoint is kept"
    ]


def test_copies_are_alike_apart_and_made_in_the_same_place_again() -> None:
    snapshot = {"masters": [torch.ones(2)]}
    moved = torch.arange(6.0).view(2, 3)
    state = {
        "masters": [moved, moved.t()],
        "optimizer": [
            {"step": torch.tensor(5.0), "exp_avg": torch.ones(3, dtype=torch.bfloat16), "count": 4}
        ],
        "counts": {"a": torch.tensor(3)},
        "stability": {"scale": None},
        "snapshot": snapshot,
    }
    copy = HostCopy(leave=UNCHANGED)
    first = copy.take(state)
    assert (
        first["optimizer"][0]["exp_avg"].dtype == torch.bfloat16
        and first["optimizer"][0]["count"] == 4
    )
    assert first["stability"] == {"scale": None} and first["counts"]["a"].item() == 3
    assert first["snapshot"] is snapshot
    assert torch.equal(first["masters"][1], moved.t())
    moved += 1
    assert not torch.equal(first["masters"][0], moved)
    places = [each.data_ptr() for each in first["masters"]]
    second = copy.take(state)
    assert [each.data_ptr() for each in second["masters"]] == places
    assert torch.equal(second["masters"][0], moved) and torch.equal(second["masters"][1], moved.t())
    other = copy.take({**state, "masters": [torch.zeros(7), moved.double()]})
    assert other["masters"][0].shape == (7,) and other["masters"][1].dtype == torch.float64
