"""benchmarks/pack.py: a difference is seen, damage is put right again, and a fault is reported."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import pack, pack_runs
from tests.packs import hashes, packed_yaml
from tests.tiny import make_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A power cut is not played here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.process
def test_help_works_as_a_script_from_any_folder(run_process, tmp_path):
    done = run_process([sys.executable, ROOT / "benchmarks/pack.py", "--help"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--bccd" in done.stdout


def batch() -> dict:
    return {
        "img": torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4),
        "cls": torch.zeros(3, 1),
        "bboxes": torch.ones(3, 4),
        "batch_idx": torch.tensor([0, 1, 1]),
        "im_file": ("a", "b"),
        "ori_shape": ((4, 4), (4, 5)),
        "sources": (("a",), ("b", "a")),
        "replaced": [],
    }


@pytest.mark.parametrize("key", ["img", "cls", "bboxes", "im_file", "ori_shape", "sources"])
def test_any_difference_of_a_sample_changes_its_checksum(key):
    one, other = batch(), batch()
    assert pack_runs._checksum(one, 1) == pack_runs._checksum(other, 1)
    if isinstance(other[key], torch.Tensor):
        other[key][-1].view(-1)[-1] += 1
    else:
        other[key] = (other[key][0], "another")
    assert pack_runs._checksum(one, 0) == pack_runs._checksum(other, 0)
    assert pack_runs._checksum(one, 1) != pack_runs._checksum(other, 1)


@pytest.mark.slow
def test_ranks_and_workers_are_compared_by_position(tmp_path):
    yaml = make_dataset(tmp_path / "set", train=20, val=1)
    dataset = pack_runs.opened(yaml, 64, tmp_path / "cache")
    whole = pack_runs.samples(dataset, pack_runs.Way(1, 0, 0), 40)
    assert sorted(whole) == list(range(40))
    resumed = pack_runs.samples(dataset, pack_runs.Way(2, 1, 20), 40)
    assert resumed == {place: whole[place] for place in range(20, 40)}


def test_flips_are_counted_and_undone(tmp_path):
    yaml = make_dataset(tmp_path / "set", train=20, val=1)
    made = packed_yaml(yaml, tmp_path / "out", shard_bytes=12_000)
    before = hashes(tmp_path / "out")
    assert pack_runs.flipped(made, 12, tmp_path / "cache") == (12, 0)
    assert hashes(tmp_path / "out") == before


def test_a_fault_stands_out_and_is_the_exit_status():
    found = pack.Found()
    assert found.check(True, "fine") == "fine"
    assert found.check(False, "wrong") == "**wrong**"
    assert found.faults == ["wrong"]
    assert "1 things were wrong." in pack._render(found, ["--bccd", "/home/x/bccd.yaml"], [])
    assert "/home" not in pack._render(found, ["--bccd", "/home/x/bccd.yaml"], [])


def test_images_of_the_synthetic_set_are_like_photographs():
    image = pack_runs._drawn(np.random.default_rng(0))
    assert image.shape == (720, 1280, 3) and 30 < image.std() < 90
