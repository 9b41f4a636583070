"""fp16 on a CPU, which users do not get: DeepSpeed is made to accept it, and the backward pass of a
convolution is made as quick as the forward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_conv2d = torch.conv2d


def allow_fp16() -> None:
    """Allow DeepSpeed's fp16 optimizers in this process, for as long as it lives.

    torch 2.13 has no fp16 kernel for the backward pass of a convolution on a CPU, and takes ten to
    thirty times as long as in fp32. Convolutions of fp16 tensors therefore compute their gradients
    in fp32 and round them to fp16, as the kernels of a GPU do.
    """
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True
    F.conv2d = _quick_conv2d


def _quick_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
    """In place of `F.conv2d`, with its arguments."""
    if x.dtype == weight.dtype == torch.float16 and x.device.type == "cpu":
        return _HalfConvolution.apply(x, weight, bias, *rest)
    return _conv2d(x, weight, bias, *rest)


class _HalfConvolution(torch.autograd.Function):
    """torch's forward pass of fp16 tensors, and a backward pass in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any = (1, 1),
        padding: Any = (0, 0),
        dilation: Any = (1, 1),
        groups: int = 1,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = (stride, padding, dilation, False, (0, 0), groups)
        return _conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        found = torch.ops.aten.convolution_backward(
            gradient.float(),
            x.float(),
            weight.float(),
            [len(weight)],
            *ctx.shape,
            list(ctx.needs_input_grad[:3]),
        )
        halves = [None if each is None else each.half() for each in found]
        return (*halves, None, None, None, None)
