"""Checkpoints are whole or absent, and what they hold can be cut for another layout. Real engines: tests/dist."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from yolods.checkpoint import store as module
from yolods.checkpoint.convert import find_checkpoint, merge
from yolods.checkpoint.read import Checkpoint, newest_in
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.cluster.ranks import Ranks, Share
from yolods.engine.shards import cut, join
from yolods.errors import UserError

ALONE = Ranks(0, 1, 0, "here", torch.device("cpu"))
MODEL = {"architecture": {"nc": 2}, "names": ["a", "b"], "train_args": {}}
WEIGHTS = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.tensor([7.0, 8.0, 9.0])}
GROUPS = [[("conv.weight", (2, 3))], [("conv.bias", (3,))]]


class Engine:
    """What a store asks of an engine: one rank's shards of WEIGHTS, cut as `kind` says."""

    def __init__(self, kind: str = "whole", rank: int = 0, ranks: int = 1) -> None:
        self.kind, self.share = kind, Share(rank, ranks)
        sizes = [-(-6 // ranks), -(-3 // ranks)] if kind != "whole" else [6, 3]
        self.held = cut(kind, GROUPS, WEIGHTS, sizes, rank, ranks)
        self.masters = SimpleNamespace(kind=kind, shards=lambda: self.held)
        self.loaded: dict = {}

    def layout(self) -> dict:
        places = [[0, rank] for rank in range(self.share.count)]
        return {"kind": self.kind, "stages": [self.describe()], "places": places}

    def describe(self) -> dict:
        return {"groups": [[list(entry) for entry in group] for group in GROUPS], "statistics": ["bn.mean"]}

    def state(self) -> dict:
        return {
            "masters": self.held,
            "optimizer": [{"step": torch.tensor(5.0), "exp_avg": shard * 10} for shard in self.held],
            "ema": {"updates": 5, "shards": [shard + 0.5 for shard in self.held], "buffers": [self._statistic(0.5)]},
            "statistics": [self._statistic(0.0)],
            "frozen": {"dfl.weight": torch.ones(1)},
            "stability": {"scale": {"cur_scale": 128.0}},
            "counters": {"global_steps": 5},
        }

    def _statistic(self, more: float) -> torch.Tensor:
        return torch.tensor([self.share.index + more])

    def load_state(self, state: dict) -> None:
        self.loaded = state


def store_in(folder: Path, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(folder, ALONE, keep=keep, model=MODEL)


def test_what_was_saved_is_loaded(tmp_path):
    progress = Progress(position=40, step=5, loss_sums=(1.0, 2.0, 3.0), best_fitness=0.25, replaced=2)
    torch.manual_seed(3)
    store_in(tmp_path).save(Engine(), progress)
    expected = torch.rand(3)
    torch.manual_seed(99)
    engine = Engine()
    assert store_in(tmp_path).load(engine) == progress
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, engine.loaded["masters"], engine.held))
    assert engine.loaded["counters"] == {"global_steps": 5}
    assert not (tmp_path / ".writing").exists()


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 100):
        store_in(tmp_path, keep=2).save(Engine(), Progress(step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step00000003", "step00000100"]
    assert newest_in(tmp_path) == tmp_path / "step00000100"


def test_a_step_may_be_saved_again(tmp_path):
    for epochs in (1, 2):
        store_in(tmp_path).save(Engine(), Progress(step=1, epochs_done=epochs))
    assert store_in(tmp_path).load(Engine()).epochs_done == 2


@pytest.mark.parametrize("what", ["rank0.pt", "progress.json", "model.json", "latest", "rename"])
def test_a_failure_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, what):
    """The disk fills up at each of the moments of a save."""
    store_in(tmp_path).save(Engine(), Progress(step=1))
    replace = os.replace

    def fail(source, target):
        if what in (Path(target).name, "rename" if Path(target).name == "step00000002" else ""):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"the checkpoint step00000002 could not be written: .*No space left on device"):
        store_in(tmp_path).save(Engine(), Progress(step=2))
    monkeypatch.undo()
    assert newest_in(tmp_path) == tmp_path / "step00000001"
    assert store_in(tmp_path).load(Engine()).step == 1
    store_in(tmp_path).save(Engine(), Progress(step=3))
    assert newest_in(tmp_path) == tmp_path / "step00000003"


def test_a_full_disk_as_torch_reports_it(tmp_path, monkeypatch):
    store_in(tmp_path).save(Engine(), Progress(step=1))

    def fail(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(module, "save_atomically", fail)
    with pytest.raises(OSError, match="step00000002 could not be written: rank 0 on here: PytorchStreamWriter failed"):
        store_in(tmp_path).save(Engine(), Progress(step=2))
    assert newest_in(tmp_path) == tmp_path / "step00000001"


def test_a_kill_while_writing_is_not_taken_for_a_checkpoint(tmp_path):
    store_in(tmp_path).save(Engine(), Progress(step=1))
    half = tmp_path / ".writing" / "step00000002"
    half.mkdir(parents=True)
    (half / "rank0.pt").write_bytes(b"half")
    assert store_in(tmp_path).load(Engine()).step == 1
    store_in(tmp_path).save(Engine(), Progress(step=2))
    assert not (tmp_path / ".writing").exists()


@pytest.mark.parametrize("latest", [None, "", "step00000009", "nowhere"])
def test_without_a_whole_checkpoint_there_is_one_line(tmp_path, latest):
    (tmp_path / "step00000009").mkdir()
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    with pytest.raises(UserError) as caught:
        store_in(tmp_path).load(Engine())
    assert str(caught.value) == f"{tmp_path}: no whole checkpoint to resume from; start afresh, without --resume"


def write_ranks(folder: Path, kind: str, count: int) -> Checkpoint:
    """What `count` ranks would write, each its own file."""
    step = folder / "step00000001"
    step.mkdir(parents=True)
    engines = [Engine(kind, rank, count) for rank in range(count)]
    for rank, engine in enumerate(engines):
        torch.save({**engine.state(), "rng": {}}, step / f"rank{rank}.pt")
    (step / "progress.json").write_text(json.dumps({"step": 1}))
    (step / "model.json").write_text(json.dumps({**MODEL, **engines[0].layout()}))
    (folder / "latest").write_text(step.name)
    return Checkpoint(step)


@pytest.mark.parametrize(
    ("kind", "count"), [("whole", 2), ("flat", 1), ("flat", 2), ("flat", 4), ("pieces", 2), ("pieces", 5)]
)
def test_shards_of_every_kind_are_put_together(tmp_path, kind, count):
    """Six and three numbers over up to five ranks: parts are padded, and some hold nothing but padding."""
    checkpoint = write_ranks(tmp_path, kind, count)
    live, average = merge(checkpoint, live=True), merge(checkpoint, live=False)
    assert live.keys() == average.keys() == {*WEIGHTS, "bn.mean", "dfl.weight"}
    for name, value in WEIGHTS.items():
        assert torch.equal(live[name], value)
        assert torch.equal(average[name], value + 0.5)
    mean = (count - 1) / 2  # statistics differ from rank to rank; a model has their mean
    assert live["bn.mean"].item() == mean
    assert average["bn.mean"].item() == mean + 0.5
    assert torch.equal(checkpoint.moment("exp_avg")["conv.bias"], WEIGHTS["conv.bias"] * 10)


@pytest.mark.parametrize(("kind", "count"), [("whole", 1), ("flat", 3), ("pieces", 2), ("pieces", 4)])
def test_cut_is_the_inverse_of_join(kind, count):
    ranks = [Engine(kind, rank, count).held for rank in range(count)]
    whole = join(kind, GROUPS, ranks)
    assert all(torch.equal(whole[name], value) for name, value in WEIGHTS.items())
    again = [cut(kind, GROUPS, whole, [t.numel() for t in held], rank, count) for rank, held in enumerate(ranks)]
    assert all(
        torch.equal(a, b) for held, other in zip(ranks, again, strict=True) for a, b in zip(held, other, strict=True)
    )


@pytest.mark.parametrize(("kind", "count"), [("flat", 2), ("pieces", 3)])
def test_a_checkpoint_goes_on_under_another_layout(tmp_path, kind, count):
    write_ranks(tmp_path, kind, count)
    record = tmp_path / "step00000001" / "progress.json"
    record.write_text(json.dumps({"step": 7, "loss_sums": [1.0, 2.0, 3.0]}))
    engine = Engine("whole")
    assert store_in(tmp_path).load(engine) == Progress(step=7, loss_sums=(1.0, 2.0, 3.0))
    for got, expected in zip(engine.loaded["masters"], engine.held, strict=True):
        assert torch.equal(got.flatten(), expected.flatten())
    assert torch.equal(engine.loaded["optimizer"][1]["exp_avg"].flatten(), WEIGHTS["conv.bias"] * 10)
    assert engine.loaded["optimizer"][0]["step"].item() == 5.0
    assert engine.loaded["ema"]["updates"] == 5
    assert engine.loaded["stability"] == {"scale": {"cur_scale": 128.0}}
    assert torch.equal(engine.loaded["statistics"][0], torch.tensor([(count - 1) / 2]))


def test_files_of_a_host_that_are_missing_are_named(tmp_path):
    checkpoint = write_ranks(tmp_path, "flat", 4)
    for rank in (1, 3):
        (checkpoint.folder / f"rank{rank}.pt").unlink()
    with pytest.raises(UserError) as caught:
        merge(checkpoint, live=False)
    assert str(caught.value) == (
        f"{checkpoint.folder}: rank1.pt, rank3.pt of 4 ranks missing; bring every host's files here"
    )


def test_a_checkpoint_is_found_by_any_of_its_paths(tmp_path):
    run = tmp_path / "run"
    folder = write_ranks(run / "checkpoints", "whole", 1).folder
    assert find_checkpoint(run) == find_checkpoint(run / "checkpoints") == find_checkpoint(folder) == folder
    for place, what in ((tmp_path, "no whole checkpoint in it"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(UserError) as caught:
            find_checkpoint(place)
        assert str(caught.value) == (f"{place}: {what}; give a run's folder, its checkpoints/, or one checkpoint in it")
