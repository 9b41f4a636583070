"""Divided backward passes: the same gradients as undivided ones, in two parts, with all hooks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from yolods.engine.pipeline.split_backward import SplitPasses, divide, run_weights
from yolods.model.layers import exchange_layers

KINDS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "groups": nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2),
    "pointwise": nn.Conv2d(4, 6, 1, bias=False),
    "pointwise with bias": nn.Conv2d(4, 6, 1),
}
FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}


def block(conv: nn.Conv2d, *, pointwise: bool = True) -> nn.Module:
    """The layer between others, as a detector has it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU(), deepcopy(conv),
        nn.SiLU(),
    )  # fmt: skip
    exchange_layers(net, low_precision=False, sync_bn=False, pointwise=pointwise)
    return net


def images(number: int, *, form: torch.memory_format = torch.channels_last) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(2, 3, 8, 8, generator=generator).contiguous(memory_format=form)


def gradients(net: nn.Module) -> Iterator[Tensor]:
    return (each.grad for each in net.parameters())


def both(net: nn.Module, batches: list[Tensor], *, dtype: torch.dtype | None = None) -> list[list]:
    """Gradients of parameters and of every batch: undivided; and divided, all weights' parts
    last."""
    other, collector = deepcopy(net), SplitPasses()
    divide(other, collector)
    casting = nullcontext() if dtype is None else torch.autocast("cpu", dtype)
    found, deferred = [], []
    for each, apart in ((net, False), (other, True)):
        inputs = [batch.detach().clone().requires_grad_(batch.requires_grad) for batch in batches]
        for given in inputs:
            with casting, collector.collecting() if apart else nullcontext() as parts:
                output = each(given)
            deferred.append(parts)
            output.float().square().sum().backward()
        if apart:
            assert net[3].weight.grad is not None and other[3].weight.grad is None
            for parts in deferred[len(batches) :]:
                run_weights(parts)
        found.append([*gradients(each), *(given.grad for given in inputs)])
    return found


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (kind, form)
        for kind in KINDS
        for form in FORMATS
        # Matrix products replace convolutions of channels-last images only.
        if form == "last" or not kind.startswith("pointwise")
    ],
)
def test_both_parts_together_are_the_undivided_pass(kind: str, form: str):
    batches = [images(number, form=FORMATS[form]).requires_grad_() for number in range(3)]
    plain, divided = both(block(KINDS[kind]), batches)
    assert len(plain) > len(batches) and all(each is not None for each in plain)
    for mine, other in zip(divided, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_a_product_rounds_as_the_undivided_one_where_gradients_are_channels_first():
    """As those of the head are, which flattens its maps. A product image by image was 2.7e-6
    apart at 24.cv3.2.2 of YOLOv5n, and all gradients before it with it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 3, 1))
    exchange_layers(net, low_precision=False, sync_bn=False, pointwise=True)
    given = torch.randn(2, 64, 2, 2).contiguous(memory_format=torch.channels_last)
    backwards = torch.randn(2, 3, 2, 2)
    assert not backwards.is_contiguous(memory_format=torch.channels_last)
    other, collector = deepcopy(net), SplitPasses()
    divide(other, collector)
    found = []
    for each in (net, other):
        x = given.clone().requires_grad_()
        with collector.collecting() as parts:
            output = each(x)
        output.backward(backwards)
        run_weights(parts)
        found.append([x.grad, *gradients(each)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_images_need_no_gradient():
    plain, divided = both(block(KINDS["plain"]), [images(0)])
    assert plain[-1] is divided[-1] is None
    assert all(torch.equal(*pair) for pair in zip(plain[:-1], divided[:-1], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_rounds_where_it_does_in_an_undivided_pass(kind: str):
    net = block(KINDS[kind], pointwise=False)
    plain, divided = both(net, [images(0).requires_grad_()], dtype=torch.bfloat16)
    for mine, other in zip(divided, plain, strict=True):
        assert mine.dtype is other.dtype is torch.float32
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def divided(kind: str = "plain") -> tuple[nn.Module, SplitPasses]:
    net, collector = block(KINDS[kind]), SplitPasses()
    divide(net, collector)
    return net, collector


def test_hooks_of_a_weight_run_with_its_part():
    net, collector = divided()
    weight, seen = net[3].weight, []
    weight.register_hook(lambda gradient: seen.append(gradient.shape))
    weight.register_post_accumulate_grad_hook(lambda each: seen.append(each.grad.shape))
    with collector.collecting() as parts:
        output = net(images(0))
    output.sum().backward()
    assert not seen and net[1].weight.grad is not None, "BatchNorm's gradients are not deferred"
    run_weights(parts)
    assert seen == [weight.shape] * 2


def test_frozen_layers_evaluation_and_1f1b_have_nothing_deferred():
    net, collector = divided()
    net[0].weight.requires_grad_(False)
    with collector.collecting() as parts:
        net(images(0))
    assert [part.half.layer for part in parts] == [net[3]]
    with collector.collecting() as parts, torch.no_grad():
        net(images(0))
    assert not parts
    net(images(0)).sum().backward()
    assert net[3].weight.grad is not None


def test_a_layer_that_no_loss_depends_on_has_no_gradient():
    net, collector = divided()
    with collector.collecting() as parts:
        net(images(0))
    run_weights(parts)
    assert all(each is None for each in gradients(net))


def test_what_is_kept_is_the_inputs_and_is_free_after_the_weights_part():
    net, collector = divided()
    kept: list[weakref.ref] = []
    for layer in net[1:3]:
        layer.register_forward_hook(lambda *given: kept.append(weakref.ref(given[2])))
    gc.disable()
    try:
        with collector.collecting() as parts:
            output = net(images(0))
        output.sum().backward()
        del output
        assert kept[0]() is None, "what BatchNorm returned was kept for SiLU alone"
        assert parts[1].half.gradient is not None
        run_weights(parts)
        assert all(part.half.gradient is None for part in parts)
        assert kept[1]() is None, "what the convolution read"
    finally:
        gc.enable()


def test_layers_that_are_not_torch_s_own_stay_whole():
    class Other(nn.Conv2d):
        pass

    net = nn.Sequential(
        Other(3, 3, 1), nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
    )  # fmt: skip
    kinds = [type(each) for each in net]
    divide(net, SplitPasses())
    assert [type(each) for each in net] == kinds
