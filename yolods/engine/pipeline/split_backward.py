"""Divides the backward pass of convolutions into the inputs' part and the weights' part.

Autograd computes both gradients of a convolution in one node. Here the node computes only that of
the input, and a second node, to which no loss is connected, holds what the weight's gradient needs:
the layer's input and its output's gradient. To run the second node is the weights' part. It ends in
torch's own accumulation into `.grad`, so hooks of parameters, casts of autocast and DeepSpeed's
buffers work as ever. All other layers (BatchNorm's weights are small) compute all their gradients
in the inputs' part.

torch.distributed.pipelining (torch 2.13, _backward.py) divides any graph: it walks it in Python in
every pass, and keeps all that autograd has saved until the weights' part. Here the activations of
BatchNorm and SiLU are free after the inputs' part, as always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolods.model.layers import PointwiseConv


class _Half:
    """What the two nodes of a convolution share."""

    def __init__(self, layer: _Split) -> None:
        self.layer = layer
        self.gradient: Tensor | None = None
        """Gradient of the layer's output; None until the inputs' part has passed here."""


@dataclass(frozen=True)
class WeightsPart:
    """One convolution and one micro-batch, from the forward pass to the weights' part.

    The nodes do not know it: they would keep each other alive in a circle.
    """

    root: Tensor
    """Output of the second node: no elements, only the way to the weight."""
    half: _Half
    """What the nodes share."""


class SplitPasses:
    """Collects the weights' parts of the micro-batch whose forward pass runs."""

    def __init__(self) -> None:
        self.parts: list[WeightsPart] | None = None
        """None: backward passes are not divided."""

    @contextmanager
    def collecting(self) -> Iterator[list[WeightsPart]]:
        """Divide the backward passes of what runs within; its parts are complete on exit."""
        self.parts = found = []
        try:
            yield found
        finally:
            self.parts = None


def divide(net: nn.Module, collector: SplitPasses) -> None:
    """Exchange the convolutions of a training model in place, as `exchange_layers` does."""
    for module in net.modules():
        # `type(...) is`, not isinstance: subclasses compute something else.
        kind = {nn.Conv2d: _SplitConv, PointwiseConv: _SplitPointwise}.get(type(module))
        # Of a padding in words or by reflection, torch's backward function does not know.
        if kind is None or module.padding_mode != "zeros" or isinstance(module.padding, str):
            continue
        module.__class__, module.collector = kind, collector


def run_weights(parts: Sequence[WeightsPart]) -> None:
    """Compute the weights' gradients of a micro-batch, after its inputs' part.

    Each is added to `.grad` and freed before the next is computed.
    """
    # No gradient reached an output that no loss depends on.
    roots = [part.root for part in parts if part.half.gradient is not None]
    if roots:
        torch.autograd.backward(roots, [root.detach() for root in roots])


class _Split(nn.Conv2d):
    """A convolution whose weights' part runs when it is asked for."""

    collector: SplitPasses

    def forward(self, x: Tensor) -> Tensor:
        """What the undivided layer computes of x (N, C, H, W)."""
        parts = self.collector.parts
        if parts is None or not self.weight.requires_grad or not torch.is_grad_enabled():
            return super().forward(x)
        # Casts are nodes of their own, with the backward pass that they always have.
        x, weight = _cast(x), _cast(self.weight)
        bias = None if self.bias is None else _cast(self.bias)
        half = _Half(self)
        parts.append(WeightsPart(_Weights.apply(weight, bias, x.detach(), half), half))
        # A node runs only if one of its inputs requires a gradient, and images do not.
        token = None if x.requires_grad else x.new_empty(0, requires_grad=True)
        fixed = None if bias is None else bias.detach()
        return _Inputs.apply(x, token, weight.detach(), fixed, half)

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output (N, C', H', W')."""
        raise NotImplementedError

    def of_input(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The input's gradient, of x's shape."""
        raise NotImplementedError

    def of_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Any]:
        """The gradients of weight and bias, of their shapes; None without a bias."""
        raise NotImplementedError


class _SplitConv(_Split):
    """Any convolution: torch's own backward function, asked for one part at a time."""

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def of_input(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(gradient, x, weight, [True, False, False])[0]

    def of_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Any]:
        wanted = [False, True, self.bias is not None]
        return self._backward(gradient, x, weight, wanted)[1:]

    def _backward(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            None if self.bias is None else self.bias.shape,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            wanted,
        )


class _SplitPointwise(_Split, PointwiseConv):
    """`PointwiseConv`, by the products of which torch's backward pass of it consists."""

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.product(x, weight, bias)

    def of_input(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        # One product of all rows: with four dimensions, torch multiplies image by image where the
        # gradient is channels-first, and rounds differently.
        rows = _rows(gradient) @ weight.flatten(1)
        return rows.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)

    def of_weight(self, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Any]:
        rows = _rows(gradient)
        bias = None if self.bias is None else rows.sum(0)
        return (rows.t() @ _rows(x)).view_as(weight), bias


class _Inputs(torch.autograd.Function):
    """A layer's output, with the inputs' part as its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, token: Tensor | None, weight: Tensor, bias: Tensor | None, half: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.half = half
        return half.layer.computed(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.half.gradient = gradient
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        return (ctx.half.layer.of_input(gradient, x, weight) if wanted else None, *[None] * 4)


class _Weights(torch.autograd.Function):
    """An empty tensor, with the weights' part as its backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, x: Tensor, half: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.half = half
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        # Taken, so that it is free when this layer is done.
        gradient, ctx.half.gradient = ctx.half.gradient, None
        return (*ctx.half.layer.of_weight(gradient, x, weight), None, None)


def _cast(tensor: Tensor) -> Tensor:
    """The tensor as autocast passes it to a convolution."""
    device = tensor.device.type
    if tensor.dtype is torch.float32 and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _rows(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N x H x W, C), a view of channels-last memory."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
