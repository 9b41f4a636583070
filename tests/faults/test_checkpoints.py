"""Whatever happens to checkpoints, one that is verified loads, and what was damaged is named.

A part of the matrix: a kill at every point of a save, every way to die, is tried by
`python benchmarks/checkpoint_faults.py`, with 200 random trials, and recorded in
benchmarks/checkpoint_faults.md.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import yolods.system.files
from tests.faults import checkpoints
from tests.faults.checkpoints import (
    DAMAGES,
    FILES,
    KINDS,
    MODES,
    NoDiskHere,
    Outcome,
    calls_of_a_save,
    damaged,
    in_child,
    killed,
    on_a_small_disk,
    trial,
)
from tests.ranks import on_ranks
from tests.stores import ALONE, MODEL, Engine
from yolods.checkpoint import checked_files, store
from yolods.checkpoint.pt_file import PtWeights, write_pt
from yolods.checkpoint.read import rank_file
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.distributed.store import KeyValueStore, open_store
from yolods.distributed.world import Ranks
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import meta_model

TRIALS = 28
KILLS = 24
"""Of all points, evenly spread, each in a way of its own."""


def wrong(outcomes: list[Outcome]) -> list[str]:
    return [f"{each.kind}, {each.what}: {fault}" for each in outcomes for fault in each.wrong]


@pytest.fixture(scope="module")
def calls() -> int:
    return calls_of_a_save()


def test_a_save_can_be_killed_at_many_points(calls):
    assert calls >= 50


@pytest.mark.parametrize("beside", [False, True], ids=["by the run", "by a thread of it"])
def test_kills_and_power_cuts_over_a_whole_save(calls, beside):
    points = [(place * calls // KILLS, MODES[place % len(MODES)]) for place in range(KILLS)]
    outcomes = [killed(number, mode, seed=number, beside=beside) for number, mode in points]
    assert wrong(outcomes) == []
    assert not [each.what for each in outcomes if each.what.startswith("no kill")]


def test_a_step_that_is_saved_again(calls):
    """The earlier one is put aside first, and may be all that there is."""
    outcomes = [
        killed(each, MODES[each % len(MODES)], seed=each, again=True)
        for each in range(100, calls, 3)
    ]
    assert wrong(outcomes) == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", DAMAGES)
def test_damage_to_each_kind_of_file(how, file):
    assert wrong([damaged(how, seed=5, file=file)]) == []


@pytest.mark.parametrize("kind", ["full disk", "read-only"])
def test_a_disk_that_takes_no_more(kind):
    try:
        outcomes = [on_a_small_disk(kind, seed, beside=seed % 2 == 1) for seed in range(6)]
    except NoDiskHere as error:
        pytest.skip(str(error))
    assert wrong(outcomes) == []


def test_random_trials(calls):
    outcomes, skipped = [], set()
    for seed in range(TRIALS):
        try:
            outcomes.append(trial(seed, calls))
        except NoDiskHere as error:
            skipped.add(str(error))
    assert wrong(outcomes) == []
    assert {each.kind for each in outcomes} == (
        {*KINDS} if not skipped else {*KINDS} - {"full disk", "read-only"}
    )


@pytest.mark.parametrize("left_out", ["contents", "names", "checksums"])
def test_these_trials_would_find_a_store_that_is_careless(monkeypatch, left_out):
    """Without flushing contents, or names, a power cut does harm; without checksums, a flipped
    bit."""
    if left_out == "names":
        monkeypatch.setattr(yolods.system.files, "sync_folder", lambda folder: None)
        monkeypatch.setattr(store, "sync_folder", lambda folder: None)
    elif left_out == "contents":
        monkeypatch.setattr(checked_files.os, "fsync", lambda handle: None)
        monkeypatch.setattr(
            checkpoints, "COUNTED", tuple(name for name in checkpoints.COUNTED if name != "fsync")
        )
    else:
        monkeypatch.setattr(checked_files.zlib, "crc32", lambda data, start=0: 0)
        assert wrong([damaged("flipped bit", seed, "rank0.pt") for seed in range(3)])
        return
    last = checkpoints.calls_of_a_save()
    assert any(killed(last - 1 - back % 20, "power cut", seed=back).wrong for back in range(60))


def save_and_damage(ranks: Ranks, folders: list[str]) -> list[dict[str, Any]]:
    """On one of two ranks: the same twice, the second time with saves by threads."""
    kv_store = open_store(ranks)
    told = [
        _save_and_damage(ranks, Path(folder), each)
        for folder, each in zip(folders, (None, kv_store), strict=True)
    ]
    ranks.barrier()  # the store goes with rank 0
    return told


def _save_and_damage(ranks: Ranks, place: Path, kv_store: KeyValueStore | None) -> dict[str, Any]:
    """Steps 1 to 3, the third and second damaged, a load; then a save that fails on rank 1."""
    kept = CheckpointStore(place, ranks, keep=3, model=MODEL, kv_store=kv_store)
    for step in (1, 2, 3):
        kept.save(Engine("flat", ranks.rank, ranks.size), Progress(step=step))
    kept.wait()
    if ranks.is_main:
        checkpoints.damage(place / "step00000003" / "rank1.pt", "flipped bit", random.Random(0))
        checkpoints.damage(place / "step00000002" / "rank0.pt", "missing", random.Random(0))
    ranks.barrier()
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    store.log.addHandler(handler)
    engine = Engine("flat", ranks.rank, ranks.size)
    step = kept.load(engine).step
    store.log.removeHandler(handler)
    report: dict[str, Any] = {
        "step": step,
        "lines": lines,
        "mine": engine.loaded["masters"][0].tolist(),
    }
    flush = checked_files.os.fsync
    if ranks.rank == 1:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        checked_files.os.fsync = full
    try:
        kept.save(engine, Progress(step=4))
        kept.wait()
    except OSError as error:
        report["refused"] = str(error)
    checked_files.os.fsync = flush
    return report | {"left": sorted(each.name for each in place.iterdir())}


def test_ranks_reach_one_verdict(tmp_path, caplog):
    """Also a single process, which reads what two ranks wrote."""
    folders = [tmp_path / "waited for", tmp_path / "beside"]
    told = on_ranks(
        "tests.faults.test_checkpoints:save_and_damage", (2,), folders=[*map(str, folders)]
    )[2]
    for folder, *reports in zip(folders, *told, strict=True):
        caplog.clear()
        check_verdict(folder, reports, caplog)


def check_verdict(
    folder: Path, reports: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """What two ranks have come to, and what one process makes of it."""
    assert [report["step"] for report in reports] == [1, 1]
    assert [report["mine"] for report in reports] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    third, second, choice = reports[0]["lines"]
    assert third.startswith(f"{rank_file(folder / 'step00000003', 1)}: damaged, its checksum is ")
    assert second == f"{rank_file(folder / 'step00000002', 0)}: missing"
    assert choice == f"resuming from {folder / 'step00000001'}, which is intact"
    assert reports[1]["lines"] == []
    for report in reports:
        assert report["refused"].startswith(
            "the checkpoint step00000004 could not be written: rank 1 on "
        )
        assert report["refused"].endswith(": [Errno 28] No space left on device")
        assert report["left"] == ["latest", "step00000001", "step00000002", "step00000003"]
    whole = Engine()
    assert CheckpointStore(folder, ALONE, keep=3, model=MODEL).load(whole).step == 1
    assert whole.loaded["masters"][0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert caplog.messages == [third, second, choice]


def _streamed(path: Path, value: float, killed_after: int | None = None) -> None:
    """Write a .pt whose weights are all `value`, tensor by tensor; die after so many of them."""
    layers = architecture(parse_name("yolov5[0.1,0.1]"), 2, 3)
    skeleton = meta_model(layers)

    def leaves() -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, tensor) in enumerate(skeleton.state_dict().items()):
            if number == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield name, torch.full(tensor.shape, value, dtype=tensor.dtype)

    write_pt(path, skeleton, leaves(), {})


def _values(path: Path) -> set[float]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    return {float(each) for tensor in PtWeights(path).values() for each in tensor.unique()}


@pytest.mark.parametrize("killed_after", [0, 1, 100, 300])
def test_a_kill_while_weights_stream_into_a_file_leaves_the_earlier_one(tmp_path, killed_after):
    path = tmp_path / "last.pt"
    _streamed(path, 1.0)
    _, ended = in_child(lambda: _streamed(path, 2.0, killed_after))
    assert ended == signal.SIGKILL and _values(path) == {1.0}
    _streamed(path, 3.0)
    assert _values(path) == {3.0} and os.listdir(tmp_path) == [path.name], "no litter"


def test_a_kill_at_any_call_of_a_stream_s_end_leaves_one_of_two_whole_files(tmp_path):
    path = tmp_path / "last.pt"

    def dying(number: int) -> int:
        last = checkpoints.LastCall(number, "before", random.Random(0))
        last.arm()
        _streamed(path, 2.0)
        return last.calls

    calls, _ = in_child(lambda: dying(1 << 30))
    seen = set()
    for number in range(calls):
        _streamed(path, 1.0)
        _, ended = in_child(lambda number=number: dying(number))
        assert ended == signal.SIGKILL
        (value,) = _values(path)
        seen.add(value)
    assert seen == {1.0, 2.0}, "before the rename, and after it"
