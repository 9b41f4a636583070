"""What a run runs on and how it was started: what is told, and where."""

from __future__ import annotations

import sys

import pytest
import torch

from yolods import __version__
from yolods.distributed.world import Ranks
from yolods.launch.args import COMMAND
from yolods.training.provenance import provenance


class Four(Ranks):
    """Rank 0 of four, on two hosts."""

    def to_main(self, value):
        return [value, value, ("beta", "NVIDIA L4 (22 GiB)"), ("beta", "NVIDIA L4 (22 GiB)")]


@pytest.fixture
def ranks() -> Ranks:
    return Four(0, 4, 0, "alpha", torch.device("cpu"))


def test_versions_devices_and_command_are_told(ranks, monkeypatch):
    monkeypatch.delenv(COMMAND, raising=False)
    monkeypatch.setattr(sys, "argv", ["yolods", "train", "--data", "my data.yaml"])
    versions, devices, command = provenance(ranks).lines()
    assert versions.startswith(f"yolods {__version__}, Python 3.")
    assert f"torch {torch.__version__}, deepspeed 0." in versions and ", ultralytics 8." in versions
    assert devices.startswith("Ranks on alpha: 2 x ") and devices.endswith(
        "; beta: 2 x NVIDIA L4 (22 GiB)"
    )
    assert command == "Command: yolods train --data 'my data.yaml'"


def test_what_the_launcher_was_told_wins_over_a_rank_s_own_words(ranks, monkeypatch):
    """A restart gives ranks other words than the user typed."""
    monkeypatch.setenv(COMMAND, "yolods launch train --data x.yaml --hostfile hosts")
    told = provenance(ranks).as_dict()
    assert told["command"] == "yolods launch train --data x.yaml --hostfile hosts"
    assert told["versions"]["yolods"] == __version__
    assert told["folder"]
