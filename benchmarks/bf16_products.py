"""bf16 convolutions on a CPU without bf16 instructions, computed as the instructions would, in a
tenth of the time.

torch leaves such convolutions to a kernel that takes 15 times as long as one in fp32 (torch 2.13 on
a CPU with AVX2 only). The instructions (AMX, AVX512-BF16) multiply bf16 values, add the products up
in fp32, and round the sum to bf16. That is a convolution in fp32 of bf16 values, rounded once at
its end, which is what is registered here.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

_FORWARD, _BACKWARD = "_slow_conv2d_forward", "_slow_conv2d_backward.output_mask"
_kept: list[Any] = []
"""The registrations, each of which ends with its object."""


def has_instructions() -> bool:
    """Whether this CPU multiplies bf16 values itself."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def use_fp32_products() -> None:
    """Have bf16 convolutions of this process, and of its forks, computed in fp32 and rounded."""
    if _kept:
        return
    forward, backward = (
        torch.library.get_kernel(f"aten::{name}", "CPU") for name in (_FORWARD, _BACKWARD)
    )
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def forward_of(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            return convolution(x, weight, *others)
        return forward.call_boxed(
            keys, x, weight, *others
        )  # fp32 comes here as well: 1x1, on one thread

    def backward_of(grad: torch.Tensor, x: torch.Tensor, *others: Any) -> Any:
        if x.dtype == torch.bfloat16:
            return convolution_backward(grad, x, *others)
        return backward.call_boxed(keys, grad, x, *others)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # torch says that a kernel is replaced
        warnings.simplefilter("ignore", UserWarning)
        library.impl(_FORWARD, forward_of, "CPU")
        library.impl(_BACKWARD, backward_of, "CPU")
    _kept.append(library)


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: Any,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
) -> torch.Tensor:
    """A convolution of bf16 tensors; the arguments are those of torch's `_slow_conv2d_forward`."""
    wide = None if bias is None else bias.float()
    product = torch.ops.aten.convolution(
        x.float(), weight.float(), wide, stride, padding, [1, 1], False, [0, 0], 1
    )
    return product.to(x.dtype)


def convolution_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    mask: Any,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of its image, weight and bias; the arguments are those of torch's
    `_slow_conv2d_backward`."""
    found = torch.ops.aten.convolution_backward(
        grad.float(),
        x.float(),
        weight.float(),
        [weight.shape[0]],
        stride,
        padding,
        [1, 1],
        False,
        [0, 0],
        1,
        mask,
    )
    return tuple(None if each is None else each.to(x.dtype) for each in found)
