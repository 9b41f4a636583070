"""What a step that is not applied leaves behind: nothing; and which snapshot a run goes back to."""

from __future__ import annotations

import pytest
import torch

from yolods.engine.snapshots import Snapshots


class Model:
    """A running statistic and a weight."""

    def __init__(self) -> None:
        self.statistic, self.weight = torch.zeros(2), torch.zeros(3)

    def snapshots(self, *, every: int = 2, restores: bool = True) -> Snapshots:
        return Snapshots(
            lambda: [self.statistic],
            lambda: {"weight": self.weight},
            every=every,
            restores=restores,
        )


@pytest.mark.parametrize(("restores", "after"), [(True, 1.0), (False, float("nan"))])
def test_statistics_go_back_to_where_the_step_began(restores, after):
    model = Model()
    snapshots = model.snapshots(restores=restores)
    model.statistic.fill_(1.0)
    snapshots.keep_statistics()
    model.statistic.fill_(float("nan"))
    snapshots.restore_statistics()
    torch.testing.assert_close(model.statistic, torch.full((2,), after), equal_nan=True)


def test_a_snapshot_is_taken_every_so_many_steps_and_is_a_copy():
    model = Model()
    snapshots = model.snapshots(every=2)
    seen = []
    for step in range(5):
        model.weight.fill_(step)
        snapshots.remember()
        seen.append(snapshots.snapshot["weight"][0].item())
    assert seen == [0, 0, 2, 2, 4]


@pytest.mark.parametrize("settings", [{"every": 0}, {"restores": False}])
def test_without_roll_backs_nothing_is_kept(settings):
    snapshots = Model().snapshots(**settings)
    snapshots.remember()
    assert not snapshots.takes_snapshots and snapshots.snapshot is None


def test_a_resumed_run_goes_back_to_the_same_snapshot_at_the_same_step():
    model, other = Model(), Model()
    snapshots, resumed = model.snapshots(every=3), other.snapshots(every=3)
    model.weight.fill_(7)
    snapshots.remember()
    state = snapshots.state()
    resumed.load(state)
    state["snapshot"]["weight"].fill_(8)  # as a file that a later save writes over
    for each in (snapshots, resumed):
        each.remember()
        each.remember()
    assert resumed.snapshot["weight"].tolist() == [7] * 3
    other.weight.fill_(9)
    resumed.remember()
    assert resumed.snapshot["weight"].tolist() == [9] * 3


def test_a_state_of_another_layout_makes_the_loaded_weights_the_snapshot():
    model = Model()
    snapshots = model.snapshots()
    model.weight.fill_(4)
    snapshots.load({})
    assert snapshots.snapshot["weight"].tolist() == [4] * 3
