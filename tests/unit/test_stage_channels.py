"""Links of a stage: made in one order on all ranks, and each met from both ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from yolods.distributed import stage_channels
from yolods.distributed.stage_channels import connect

CPU = torch.device("cpu")


class Grid:
    """One replica of so many stages; the groups are names."""

    replica, host_group = 0, "hosts"

    def __init__(self, stage: int, stages: int) -> None:
        self.stage, self.stages = stage, stages
        self.first, self.last = stage == 0, stage == stages - 1

    def neighbour(self, step: int) -> int:
        return self.stage + step

    def rank_at(self, stage: int, replica: int) -> int:
        return stage

    def forward_group(self, boundary: int) -> str:
        return f"forward {boundary}"

    def backward_group(self, boundary: int) -> str:
        return f"backward {boundary}"


@pytest.fixture
def met(monkeypatch) -> list[str]:
    """What the links that are made do, in their order."""
    found: list[str] = []

    def link(peer, group, device, *, headers, tag):
        said = lambda what: lambda: found.append(f"{what} {peer} in {group}")  # noqa: E731
        return SimpleNamespace(
            peer=peer, group=group, tag=tag, greet=said("greet"), await_greeting=said("await")
        )

    monkeypatch.setattr(stage_channels, "P2PChannel", link)
    return found


def test_the_even_boundaries_meet_first_and_forward_before_backward(met):
    connect(Grid(1, 4), CPU)  # between the boundaries 0 and 1
    assert met == [
        "await 0 in forward 0",
        "greet 0 in backward 0",
        "greet 2 in forward 1",
        "await 2 in backward 1",
    ]
    met.clear()
    connect(Grid(2, 4), CPU)  # between 1 and 2
    assert met == [
        "greet 3 in forward 2",
        "await 3 in backward 2",
        "await 1 in forward 1",
        "greet 1 in backward 1",
    ]


def test_no_order_of_the_stages_leaves_two_waiting_for_each_other(met):
    """Played out: who awaits goes on once its peer has greeted it."""
    stages, scripts = 5, []
    for stage in range(stages):
        met.clear()
        connect(Grid(stage, stages), CPU)
        scripts.append(
            [
                (word, int(peer), group)
                for word, peer, _, group in (line.split(" ", 3) for line in met)
            ]
        )
    greeted: set[tuple[int, int, str]] = set()
    places = [0] * stages
    moved = True
    while moved:
        moved = False
        for stage, script in enumerate(scripts):
            while places[stage] < len(script):
                word, peer, group = script[places[stage]]
                if word == "await" and (peer, stage, group) not in greeted:
                    break
                greeted.add((stage, peer, group)) if word == "greet" else None
                places[stage], moved = places[stage] + 1, True
    assert places == [len(script) for script in scripts]


def test_the_ends_have_a_neighbour_on_one_side_and_labels_between_them(met):
    first, middle, last = (connect(Grid(stage, 3), CPU) for stage in range(3))
    assert (first.from_before, first.to_before, last.to_after, last.from_after) == (None,) * 4
    assert (first.labels.peer, middle.labels, last.labels.peer) == (2, None, 0)
    assert first.to_after.group == middle.from_before.group == "forward 0"
    assert connect(Grid(0, 1), CPU) == stage_channels.StageChannels(None, None, None, None, None)
