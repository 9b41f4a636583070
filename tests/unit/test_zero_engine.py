"""Micro-batches of a whole detector: how they add up, when gradients are reduced, and what is
predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.loose_engine import LooseDeepSpeed, micro_batch, parts_of, small_net, square_loss
from yolods.distributed.world import Share
from yolods.engine.microbatches import ReplayableBatches
from yolods.engine.zero_engine import ZeroEngine
from yolods.optim.lr_schedule import Step


def engine(**settings: Any) -> ZeroEngine:
    return ZeroEngine(parts_of(LooseDeepSpeed(small_net()), loss=square_loss, **settings))


def accumulate(made: ZeroEngine, numbers: range, size: int | None = None) -> torch.Tensor:
    step = Step(0, len(numbers), 0, (0.1, 0.1, 0.1), 0.9)
    feed = ReplayableBatches(
        (micro_batch(number, images=1 + number) for number in numbers), keep=False
    )
    return made._accumulate(step, feed, size)


def test_only_the_last_micro_batch_is_the_boundary_and_nothing_is_divided_by_their_number():
    made = engine()
    accumulate(made, range(3))
    passes = [("boundary", False), "forward", ("backward", False), "step"]
    assert made.deepspeed.told == [
        *passes,
        *passes,
        ("boundary", True),
        "forward",
        ("backward", False),
    ]


def plain_gradient(numbers: range, factor: float) -> torch.Tensor:
    """Of the losses' sum, each the mean of its images times their number."""
    net = small_net().train()
    for number in numbers:
        batch = micro_batch(number, images=1 + number)
        (factor * square_loss(net(batch["img"].float() / 255), batch, 1 + number)[0]).backward()
    return net[1].weight.grad


@pytest.mark.parametrize(("replicas", "scale"), [(1, 1.0), (3, 1.0), (2, 8.0)])
def test_gradients_are_those_of_the_sum_over_micro_batches_times_what_averaging_takes_away(
    replicas, scale
):
    """DeepSpeed averages over the replicas where ultralytics adds up."""
    made = engine(share=Share(0, replicas))
    made.stability.scale = scale
    made.training()
    made.deepspeed.step = lambda: None
    accumulate(made, range(2))
    expected = plain_gradient(range(2), scale * replicas)
    torch.testing.assert_close(made.net[1].weight.grad, expected)


def test_losses_and_boxes_of_all_micro_batches_are_summed():
    made = engine()
    made.net.eval()  # so that one does not move the next one's
    alone = [accumulate(made, range(number, number + 1)) for number in (1, 2)]
    torch.testing.assert_close(accumulate(made, range(1, 3)), sum(alone))
    assert alone[1][3] == 2


def test_images_are_stretched_for_multi_scale_training():
    seen = []
    made = engine()
    made.deepspeed.module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with pytest.raises(RuntimeError, match="size"):  # what the loss is to be compared with is 4 x 4
        accumulate(made, range(1), size=8)
    assert seen[0].shape == (1, 3, 8, 8) and float(seen[0].max()) <= 1


def test_what_is_predicted_is_what_ultralytics_decodes():
    from dataclasses import replace

    from yolods.model.architecture.build import architecture, build, parse_name

    torch.manual_seed(0)
    net = build(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b")).eval()
    made = engine()
    strides = tuple(net.stride.tolist())
    made = ZeroEngine(
        replace(parts_of(made.deepspeed), strides=strides, reg_max=net.model[-1].reg_max)
    )
    made.deepspeed.module = net
    images = torch.randint(
        0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    boxes, raw = made.predict(images)
    with torch.no_grad():
        expected, theirs = net(images.float() / 255)
    torch.testing.assert_close(boxes, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(raw["scores"], theirs["scores"]) and not boxes.requires_grad
