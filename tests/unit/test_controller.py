"""From gradients to a verdict and to what DeepSpeed's step is told: on numbers, with stand-ins for
its optimizer."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolods.config.deepspeed.yolods_block import YolodsConfig
from yolods.stability.controller import Stability, StockStability
from yolods.stats import LOSS_NAMES
from yolods.zero.gradients import Decision
from yolods.zero.loss_scale import LossScale, ScaleRules

CPU = torch.device("cpu")
NAMES = ("a", "b")


def stability(
    *parts: float,
    scale: float | None = None,
    names: tuple[str, ...] = NAMES,
    held: tuple[str, ...] = NAMES,
    **more: Any,
) -> Stability:
    """What judges a rank that holds gradients of these values for `held`, of a model whose
    parameters are `names`."""
    gradients = SimpleNamespace(
        names=list(held),
        sharded=more.pop("sharded", True),
        decision=Decision(),
        device=CPU,
        slices=lambda: [torch.tensor([value]) for value in parts],
    )
    usual = {"max_norm": 0.0, "by_hand": True, "replica": 0, "world_size": 1, "device": CPU}
    rules = None if scale is None else LossScale(ScaleRules(initial=scale, hysteresis=1))
    return Stability(gradients, names, YolodsConfig(), scale=rules, **{**usual, **more})


def sums(*losses: float, boxes: float = 5, stop: float = 0) -> torch.Tensor:
    return torch.tensor([*losses, boxes, stop])


def judged(
    controller: Stability | StockStability, given: torch.Tensor, micro_batches: int = 1
) -> Any:
    return controller.before_step(given, micro_batches, can_return=False)


def decision_of(controller: Stability) -> Decision:
    return controller._gradients.decision


def test_losses_are_means_over_the_micro_batches_and_boxes_are_counted():
    record = judged(stability(3.0, 4.0), sums(2.0, 4.0, 6.0, boxes=7, stop=1), 2)
    assert record.loss == dict(zip(LOSS_NAMES, (1.0, 2.0, 3.0), strict=True))
    assert (record.instances, record.stop, record.loss_scale) == (7, True, None)
    assert not judged(stability(3.0, 4.0), sums(1, 1, 1)).stop


def test_norms_stand_at_their_parameters_whatever_the_order_in_which_a_rank_holds_them():
    record = judged(stability(3.0, 4.0, held=("b", "a")), sums(1, 1, 1))
    assert record.grad_stats.norms.tolist() == [4.0, 3.0] and record.grad_norm == 5.0


def test_unscaling_and_clipping_are_one_factor():
    controller = stability(6.0, 8.0, scale=2.0, max_norm=1.0)
    record = judged(controller, sums(1, 1, 1))
    assert (record.grad_norm, record.norm_after, record.loss_scale) == (
        5.0,
        pytest.approx(1.0, rel=1e-5),
        2.0,
    )
    told = decision_of(controller)
    assert (told.skip, told.norm) == (False, 10.0), "the norm as it lies there"
    assert told.factor == pytest.approx(0.2 / 2.0, rel=1e-5)


@pytest.mark.parametrize(
    ("replica", "sharded", "norm"), [(0, False, 5.0), (1, False, 0.0), (1, True, 5.0)]
)
def test_of_gradients_that_every_replica_holds_the_first_one_s_count(replica, sharded, norm):
    assert (
        judged(stability(3.0, 4.0, replica=replica, sharded=sharded), sums(1, 1, 1)).grad_norm
        == norm
    )


@pytest.mark.parametrize(
    ("bad", "loss", "scale", "cause", "after"),
    [
        (math.inf, 1.0, 8.0, "overflow", 4.0),
        (math.nan, 1.0, None, "backward", None),
        (1.0, math.nan, 8.0, "forward", 8.0),  # a bad image: a smaller scale would not have helped
    ],
)
def test_a_bad_step_is_skipped_and_only_an_overflow_moves_the_scale(bad, loss, scale, cause, after):
    controller = stability(bad, 1.0, scale=scale)
    record = judged(controller, sums(loss, 1, 1))
    assert (record.verdict.action, record.verdict.cause, record.norm_after) == ("skip", cause, None)
    assert decision_of(controller) == Decision(skip=True)
    assert controller.after_step(record).next_scale == after
    assert controller.state()["scale"].get("good_steps", 0) == 0, "nor does it count as a good one"
    assert controller.named(record.verdict.suspects)[0] == "a"


def test_boxes_that_are_no_number_do_not_end_the_run():
    assert judged(stability(1.0, 1.0), sums(1, 1, 1, boxes=math.nan)).instances == 0


def test_what_is_thrown_away_is_not_taken_for_a_step():
    controller = stability(3.0, 4.0)
    judged(controller, sums(1, 1, 1))
    controller.discard()
    assert decision_of(controller) == Decision(skip=True)


def test_losses_are_scaled_here_only_where_deepspeed_does_not():
    for by_hand, expected in ((True, 16.0), (False, 2.0)):
        assert (
            stability(scale=8.0, by_hand=by_hand, held=()).scaled(torch.tensor(2.0)).item()
            == expected
        )


def test_another_cut_of_the_model_takes_its_memory_over_by_name():
    first, second = (
        stability(3.0, 4.0, scale=8.0),
        stability(4.0, 3.0, scale=2.0, names=("b", "a"), held=("b", "a")),
    )
    for _ in range(3):
        judged(first, sums(1, 1, 1))
    state = first.state()
    second.load(state)
    assert second.state()["scale"] == state["scale"]
    again = second.state()["guard"]
    third = stability(3.0, 4.0, scale=1.0)
    third.load({**state, "guard": again, "names": ["b", "a"]})
    assert str(third.state()["guard"]) == str(state["guard"])
    assert str(again) != str(state["guard"]), "the order is its own"
    third.load({"stock": {"cur_scale": 1.0}})
    assert third.state()["scale"]["cur_scale"] == 8.0, "another handling wrote that"


class Theirs:
    """DeepSpeed's engine under stock handling."""

    def __init__(self, *, fp16: bool, overflow: bool = False) -> None:
        scaler = SimpleNamespace(cur_scale=4.0, window=100, kind=object())
        self.optimizer = SimpleNamespace(overflow=overflow, loss_scale=4.0, loss_scaler=scaler)
        self._fp16 = fp16

    def fp16_enabled(self) -> bool:
        return self._fp16

    def get_global_grad_norm(self) -> float | None:
        return 7.0 if self._fp16 else None


@pytest.mark.parametrize(
    ("fp16", "overflow", "cause"),
    [(True, True, "overflow"), (False, True, "backward"), (True, False, "")],
)
def test_under_stock_handling_deepspeed_s_word_is_taken(fp16, overflow, cause):
    controller = StockStability(Theirs(fp16=fp16, overflow=overflow), 1, by_hand=True)
    record = controller.after_step(judged(controller, sums(2, 2, 2), 2))
    assert record.verdict.cause == cause and record.verdict.applied is (cause == "")
    assert (record.loss["box_loss"], record.grad_norm) == (1.0, 7.0 if fp16 else None)
    assert record.next_scale == (4.0 if fp16 else None)
    assert controller.scaled(torch.tensor(2.0)).item() == (8.0 if fp16 else 2.0)


def test_deepspeed_s_scaler_comes_back_from_a_checkpoint():
    engine = Theirs(fp16=True)
    controller = StockStability(engine, 1, by_hand=False)
    state = controller.state()
    assert state == {"stock": {"cur_scale": 4.0, "window": 100}}
    engine.optimizer.loss_scaler.cur_scale = 1.0
    controller.load({"guard": {}})
    assert engine.optimizer.loss_scaler.cur_scale == 1.0
    controller.load(state)
    assert engine.optimizer.loss_scaler.cur_scale == 4.0
    assert StockStability(Theirs(fp16=False), 1, by_hand=False).state() == {"stock": {}}
