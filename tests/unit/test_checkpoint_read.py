"""Whole tensors out of what the ranks of any layout wrote. Real runs:
tests/faults/test_resumes.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.stores import MODEL, WEIGHTS, write_ranks
from yolods.checkpoint import tensor_file
from yolods.checkpoint.convert import merge_shards
from yolods.checkpoint.read import Checkpoint, rank_file


@pytest.mark.parametrize(
    ("kind", "count"),
    [("whole", 2), ("flat", 1), ("flat", 2), ("flat", 4), ("pieces", 2), ("pieces", 5)],
)
@pytest.mark.parametrize("small", [-1, 1 << 16])
def test_shards_of_every_kind_are_put_together(tmp_path, monkeypatch, kind, count, small):
    """Six and three numbers over up to five ranks: parts are padded, and some hold nothing but
    padding."""
    monkeypatch.setattr(tensor_file, "READ_ALONG", small)
    checkpoint = write_ranks(tmp_path, kind, count)
    live, average = (dict(merge_shards(checkpoint, live=live)) for live in (True, False))
    assert live.keys() == average.keys() == {*WEIGHTS, "bn.mean", "dfl.weight"}
    for name, value in WEIGHTS.items():
        assert torch.equal(live[name], value)
        assert torch.equal(average[name], value + 0.5)
    mean = (count - 1) / 2  # statistics differ from rank to rank; a model has their mean
    assert live["bn.mean"].item() == mean
    assert average["bn.mean"].item() == mean + 0.5
    assert torch.equal(checkpoint.moment("exp_avg")["conv.bias"], WEIGHTS["conv.bias"] * 10)


def stages_apart(folder: Path) -> Checkpoint:
    """Two stages x two replicas, and ranks that lie replica by replica from the last stage on."""
    shapes = {0: ("a", [2]), 1: ("b", [2])}
    places = [[1, 1], [1, 0], [0, 1], [0, 0]]
    for rank, (stage, replica) in enumerate(places):
        half = torch.tensor([10.0 * stage + replica])  # of a parameter of two numbers
        state = {
            "masters": [half],
            "optimizer": [{"step": torch.tensor(3.0), "exp_avg": -half}],
            "ema": {"shards": [half + 100], "buffers": []},
            "statistics": [],
            "frozen": {f"frozen{stage}": half},
        }
        torch.save(
            state | ({"counts": {"bn.count": torch.tensor(7)}} if rank == 0 else {}),
            rank_file(folder, rank),
        )
    stages = [{"groups": [[shapes[stage]]], "statistics": []} for stage in (0, 1)]
    model = {**MODEL, "kind": "flat", "stages": stages, "places": places}
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "progress.json").write_text('{"step": 3}')
    return Checkpoint(folder)


def test_shards_are_put_together_by_stage_and_replica_and_not_by_rank(tmp_path):
    checkpoint = stages_apart(tmp_path)
    assert {name: value.tolist() for name, value in checkpoint.masters().items()} == {
        "a": [0, 1],
        "b": [10, 11],
    }
    assert checkpoint.average()["b"].tolist() == [110, 111]
    assert checkpoint.moment("exp_avg")["b"].tolist() == [-10, -11]
    assert set(checkpoint.frozen()) == {"frozen0", "frozen1"}


def test_counts_that_only_some_ranks_have_written_are_found(tmp_path):
    checkpoint = stages_apart(tmp_path)
    assert checkpoint.counts()["bn.count"].item() == 7
    assert checkpoint.progress["step"] == 3
    assert set(checkpoint.moments()) == {"step", "exp_avg"}


def test_an_optimizer_that_keeps_nothing_has_no_moments(tmp_path):
    checkpoint = stages_apart(tmp_path)
    state = torch.load(rank_file(tmp_path, 0))
    torch.save({**state, "optimizer": []}, rank_file(tmp_path, 0))
    assert checkpoint.moments() == {}


def test_a_parameter_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "READ_ALONG", -1)
    checkpoint = write_ranks(tmp_path, "flat", 2)
    masters = checkpoint.masters()
    assert masters.shapes == {"conv.weight": (2, 3), "conv.bias": (3,)}
    assert len(masters) == 2
    for rank in range(2):
        rank_file(checkpoint.folder, rank).unlink()
    with pytest.raises(FileNotFoundError):
        masters["conv.bias"]
