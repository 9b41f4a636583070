"""bf16 convolutions on a CPU without bf16 instructions, computed as the instructions would, in a tenth of the time.

torch leaves such convolutions to a kernel that takes 15 times as long as one in fp32 (torch 2.13 on a CPU with AVX2
only). The instructions (AMX, AVX512-BF16) multiply bf16 values, add the products up in fp32, and round the sum to bf16.
That is a convolution in fp32 of bf16 values, rounded once at its end, which is what is registered here.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

_CONVOLUTION = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
_registered: list[torch.library.Library] = []
"""A registration ends with its object."""


def has_instructions() -> bool:
    """Whether this CPU multiplies bf16 values itself."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def use_fp32_products() -> None:
    """Have bf16 convolutions of this process, and of its forks, computed in fp32 and rounded."""
    if _registered:
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # torch says that a kernel is replaced
        warnings.simplefilter("ignore", UserWarning)
        library.impl("_slow_conv2d_forward", _forward, "CPU")
        library.impl("_slow_conv2d_backward.output_mask", _backward, "CPU")
    _registered.append(library)


def _forward(
    x: torch.Tensor, weight: torch.Tensor, kernel: Any, bias: torch.Tensor | None, stride: Any, padding: Any
) -> torch.Tensor:
    wide = None if bias is None else bias.float()
    return _CONVOLUTION(x.float(), weight.float(), wide, stride, padding, [1, 1], False, [0, 0], 1).to(x.dtype)


def _backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, kernel: Any, stride: Any, padding: Any, mask: Any
) -> tuple[torch.Tensor | None, ...]:
    found = _BACKWARD(
        grad.float(), x.float(), weight.float(), [weight.shape[0]], stride, padding, [1, 1], False, [0, 0], 1, mask
    )
    return tuple(None if each is None else each.to(x.dtype) for each in found)
