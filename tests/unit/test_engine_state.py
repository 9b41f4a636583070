"""What trains on a rank, saved and taken over: fp32 on one rank, where the parameters are the
masters. Real layouts: tests/faults/test_resumes.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.loose_engine import CPU, LooseDeepSpeed, micro_batch, parts_of, small_net, square_loss
from yolods.device.host_copy import host_copy
from yolods.distributed.world import Ranks
from yolods.engine.state import TrainingState, _shaped
from yolods.engine.zero_engine import ZeroEngine
from yolods.errors import UserError
from yolods.optim.lr_schedule import Step

STEP = Step(0, 1, 0, (0.1, 0.1, 0.1), 0.9)


@pytest.fixture(autouse=True)
def without_deepspeed(monkeypatch) -> Iterator[None]:
    """Its import takes seconds, and nothing is partitioned here."""
    gathered = SimpleNamespace(GatheredParameters=lambda *_, **__: nullcontext())
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero", gathered)
    yield


def engine(seed: int = 0, **settings: Any) -> ZeroEngine:
    made = ZeroEngine(parts_of(LooseDeepSpeed(small_net(seed)), loss=square_loss, **settings))
    made.training()
    return made


def trained(state: ZeroEngine, steps: int = 3) -> ZeroEngine:
    for number in range(steps):
        state.train_step(STEP, iter([micro_batch(number)]))
    return state


def same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return mine.keys() == other.keys() and all(
        torch.equal(mine[name], other[name]) for name in mine
    )


def test_who_takes_a_state_over_goes_on_as_the_other_would():
    first, second = trained(engine()), engine(seed=9)
    second.load_state(host_copy(first.state()))
    assert same(dict(first.weights()), dict(second.weights()))
    assert second.deepspeed.global_steps == 3 and second.ema.updates == 3
    for each in (first, second):
        trained(each, 2)
    assert same(dict(first.weights()), dict(second.weights())), "momentum, too"
    with first.ema.exchange(), second.ema.exchange():
        assert same(dict(first.weights()), dict(second.weights()))
    assert all(
        map(torch.equal, first.snapshots.snapshot["masters"], second.snapshots.snapshot["masters"])
    )


def test_a_state_of_other_frozen_layers_is_refused_and_changes_nothing():
    first, second = engine(), engine(seed=9)
    before = dict(second.weights())
    state = host_copy(first.state())
    state["frozen"]["0.weight"] = state["frozen"]["0.weight"][:2]
    with pytest.raises(
        UserError,
        match=r"^the state belongs to another model, or to other frozen layers: 0\.weight is ",
    ):
        second.load_state(state)
    assert same(dict(second.weights()), before)


def test_ranks_that_hand_over_no_frozen_weights_keep_their_own():
    first, second = engine(), engine(seed=9)
    kept = dict(second.weights())["0.weight"]
    second.load_state({**host_copy(first.state()), "frozen": {}})
    assert torch.equal(dict(second.weights())["0.weight"], kept)
    assert torch.equal(dict(second.weights())["1.weight"], dict(first.weights())["1.weight"])


def test_a_whole_model_is_adopted_and_optimizer_and_average_stay():
    state = trained(engine())
    moment = state.masters.states()[0]["momentum_buffer"].clone()
    average = [shard.clone() for shard in state.ema.state_dict()["shards"]]
    other = small_net(seed=5)
    other[2].running_mean.fill_(3.0)
    state.adopt(other.state_dict())
    found = dict(state.weights())
    counted = "2.num_batches_tracked"
    assert same({**found, counted: torch.tensor(0)}, dict(other.state_dict()))
    assert torch.equal(state.masters.states()[0]["momentum_buffer"], moment)
    assert all(map(torch.equal, state.ema.state_dict()["shards"], average))


def test_rank_0_alone_hands_over_the_model_in_fp32_and_a_copy():
    state = engine()
    weights = dict(state.weights())
    assert list(sorted(weights)) == sorted(state.net.state_dict())
    for name in ("0.weight", "1.weight", "2.running_mean"):
        weights[name].fill_(7.0)
        assert not (state.net.state_dict()[name] == 7.0).any()

    class Second(Ranks):
        """Rank 1 of two, that meets nobody."""

    assert dict(engine(ranks=Second(1, 2, 1, "here", CPU)).weights()) == {}


def test_shards_are_described_in_the_order_in_which_they_lie():
    state = engine()
    described = state.describe()
    assert [len(group) for group in described["groups"]] == [1, 1, 1]
    assert described["groups"][0] == [("1.weight", [2, 4, 1, 1])]
    assert described["statistics"] == ["2.running_mean", "2.running_var"]
    assert [name for ((name, _),) in described["groups"]] == ["1.weight", "2.weight", "2.bias"]
    assert state.layout() == {"kind": "whole", "stages": [described], "places": [[0, 0]]}


@pytest.mark.parametrize(
    ("moment", "shape"),
    [(torch.zeros(6), (2, 3)), (torch.zeros(2, 3), (2, 3)), (torch.tensor(5.0), ())],
)
def test_moments_take_their_shard_s_shape_and_numbers_stay(moment: Tensor, shape: tuple[int, ...]):
    shaped = _shaped({"exp_avg": moment, "lr": 0.1}, torch.zeros(2, 3))
    assert shaped["exp_avg"].shape == shape and shaped["lr"] == 0.1
    assert _shaped({"step": torch.tensor(5.0)}, torch.zeros(1))["step"].shape == (), (
        "a shard of a single number"
    )


def test_a_snapshot_is_part_of_a_state_even_where_none_was_taken_yet():
    assert isinstance(engine(), TrainingState)
    assert engine().state()["snapshot"] is None
    assert trained(engine(), 1).state()["snapshot"]["masters"]
