"""The order of a step, and what one that is not applied leaves behind: nothing. Without DeepSpeed,
on one rank."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.loose_engine import LooseDeepSpeed, micro_batch, parts_of, small_net, square_loss
from yolods.engine.base import Engine
from yolods.engine.zero_engine import ZeroEngine
from yolods.optim.lr_schedule import Step
from yolods.stability.guard import Verdict

STEP = Step(0, 2, 0, (0.3, 0.2, 0.1), 0.5)
SKIP, ROLLBACK = Verdict("skip", "backward"), Verdict("rollback", "gradient_spike")


def engine(**settings: Any) -> ZeroEngine:
    momentum = settings.pop("momentum", 0.9)
    made = ZeroEngine(
        parts_of(LooseDeepSpeed(small_net(), momentum=momentum), loss=square_loss, **settings)
    )
    made.training()
    return made


def take(made: Engine, first: int = 0, **given: Any) -> Any:
    return made.train_step(
        STEP, (micro_batch(number) for number in range(first, first + STEP.batches)), **given
    )


def what_moves(made: Engine) -> list[torch.Tensor]:
    buffers = [each.clone() for each in made.net.buffers() if each.is_floating_point()]
    return [*(each.detach().clone() for each in made.net.parameters()), *buffers]


def unchanged(made: Engine, before: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, what_moves(made), before))


def test_a_step_moves_weights_by_the_rates_that_it_was_given_and_says_them():
    made = engine()
    before = made.net[1].weight.detach().clone()
    record = take(made)
    assert record.scalars["lr/pg0"] == 0.3 and record.scalars["lr/pg2"] == 0.1
    assert [group["lr"] for group in made.deepspeed.optimizer.param_groups] == [0.3, 0.2, 0.1]
    assert record.scalars["optim/momentum"] == 0.5
    assert not torch.equal(made.net[1].weight, before) and made.ema.updates == 1
    moved = (before - made.net[1].weight.detach()) / 0.3
    assert torch.allclose(
        moved, made.deepspeed.optimizer.state[made.net[1].weight]["momentum_buffer"], atol=1e-5
    )


def test_losses_boxes_and_the_wish_to_stop_reach_who_judges_in_one_tensor():
    made = engine()
    take(made, 3, stop=True)
    ((sums, micro_batches, can_return),) = made.stability.seen
    assert sums[3:] == [3 + 4, 1.0] and sums[1] == pytest.approx(2 * sums[0])
    assert (micro_batches, can_return) == (STEP.batches, False)
    take(made)
    assert made.stability.seen[1][2] is True, "an applied step has left a snapshot"


def test_a_step_that_is_skipped_leaves_nothing_behind_and_its_gradients_are_dropped():
    made = engine(verdict=SKIP)
    before = what_moves(made)
    record = take(made)
    assert record.skipped and unchanged(made, before)
    assert (made.ema.updates, made.snapshots.snapshot) == (0, None)
    assert made.deepspeed.told[-1] == "step" and made.net[1].weight.grad is None


def test_a_roll_back_returns_to_the_weights_before_the_last_snapshot():
    made = engine(snapshot_steps=1)
    take(made)
    good = what_moves(made)
    take(made)  # it takes the snapshot of what the first has left, and moves on
    made.stability.verdict = ROLLBACK
    take(made)
    # Statistics are those that the good step's own passes had left by the time of the snapshot.
    weights = len(list(made.net.parameters()))
    assert all(map(torch.equal, what_moves(made)[:weights], good[:weights]))
    assert made.ema.updates == 1


def test_images_that_are_no_numbers_do_not_stay_in_the_statistics():
    made = engine(verdict=SKIP)
    with torch.no_grad():
        made.net[0].bias.fill_(math.nan)
    take(made)
    assert all(torch.isfinite(buffer).all() for buffer in made.statistics())


def test_a_step_that_went_bad_is_looked_at_in_a_second_run_that_leaves_no_trace():
    made = engine(verdict=SKIP, attribution="armed")
    with torch.no_grad():
        made.net[1].weight[0, 0] = math.inf
    before = what_moves(made)[2:]
    record = take(made)
    assert made.deepspeed.told.count("forward") == 2 * STEP.batches
    assert made.deepspeed.global_steps == 1, "DeepSpeed's own counters do not count it"
    assert all(torch.equal(a, b) for a, b in zip(what_moves(made)[2:], before, strict=True))
    assert record.culprits and record.culprits[0].phase == "forward"
    watched = engine(verdict=SKIP)
    assert take(watched).culprits == () and watched.deepspeed.told.count("forward") == STEP.batches


def test_without_a_momentum_there_is_no_curve_of_one():
    made = engine()
    for group in made.deepspeed.optimizer.param_groups:
        del group["momentum"]
    assert made._rates(STEP) == {
        "lr/pg0": 0.3,
        "lr/pg1": 0.2,
        "lr/pg2": 0.1,
        "optim/momentum": None,
    }


def test_within_an_evaluation_the_model_is_its_average_and_afterwards_trains_on():
    made = engine(frozen=("2.",))
    take(made)
    before = what_moves(made)
    with made.evaluating():
        assert not made.net.training and not unchanged(made, before)
        assert torch.equal(made.net[1].weight, made.ema.state_dict()["shards"][0]) is False, (
            "they are exchanged"
        )
    assert unchanged(made, before)
    assert made.net.training and not made.net[2].training, "frozen statistics stay as they are"


def test_statistics_are_taken_anew_over_the_images_that_count():
    class Plain(ZeroEngine):
        def predict(self, images):
            self.net(self.inputs.images(images))

    made = Plain(parts_of(LooseDeepSpeed(small_net())))
    made.net.eval()
    images = micro_batch(1, images=3)["img"]
    inside = made.net[1](made.net[0](images.float() / 255))
    made.restate_statistics([(images[:2], 2), (images[2:], 1)])
    torch.testing.assert_close(made.net[2].running_mean, inside.mean((0, 2, 3)))
    torch.testing.assert_close(
        made.net[2].running_var, inside.var((0, 2, 3), unbiased=True), rtol=0.1, atol=1e-3
    )
    frozen = Plain(parts_of(LooseDeepSpeed(small_net()), frozen=("2.",)))
    frozen.net.eval()
    frozen.restate_statistics([(images, 3)])
    assert frozen.net[2].running_mean.tolist() == [0, 0]


class Remembers:
    """A compression that counts the steps whose remainders it keeps."""

    def __init__(self) -> None:
        self.kept = torch.zeros(1)

    def commit(self) -> None:
        self.kept += 1

    def state(self) -> dict[str, Any]:
        return {"memory": {"0.weight": self.kept}}

    def load(self, state: dict[str, Any]) -> None:
        self.kept.copy_(state["memory"]["0.weight"])


def test_what_was_not_sent_is_kept_after_an_applied_step_and_goes_back_with_the_weights():
    parts = parts_of(LooseDeepSpeed(small_net()), loss=square_loss, snapshot_steps=2)
    made = ZeroEngine(replace(parts, compression=Remembers()))
    made.training()
    take(made)
    take(made)
    assert made.compression.kept == 2
    made.stability.verdict = SKIP
    take(made)
    assert made.compression.kept == 2
    made.stability.verdict = ROLLBACK
    take(made)
    assert made.compression.kept == 0, "as it was before the step that took the snapshot"
