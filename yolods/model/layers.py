"""Layers that replace ultralytics' in training: same parameters and names, other arithmetic.

A layer is exchanged by changing the class of the module, so state_dict keys, initial values and
hooks do not change. Only the plain model is saved; none of these classes is ever in a .pt file.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from yolods.compat import own_shared_modules


class BatchNormFloat32(nn.BatchNorm2d):
    """BatchNorm that computes in fp32, whatever the dtype of the activations.

    DeepSpeed's bf16 and fp16 modes cast parameters and leave buffers in fp32. torch's own layer
    refuses this mixture on the CPU. Running statistics in 8 bits of mantissa would cost accuracy,
    because updates with momentum 0.03 round to nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, shape (N, C, H, W), any float dtype; the result has x's dtype."""
        batch_statistics = self.training or self.running_mean is None
        return F.batch_norm(
            x.float() if x.device.type == "cpu" and x.dtype == torch.float16 else x,
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            batch_statistics,
            self.momentum,
            self.eps,
        ).to(x.dtype)


class SyncBatchNormFloat32(BatchNormFloat32):
    """BatchNorm over the pixels of all data-parallel ranks, on any device and backend.

    torch's SyncBatchNorm runs only on GPUs. Here one differentiable all-reduce carries (sum, sum of
    squares, count) in fp32; the statistics' gradient crosses ranks through the same all-reduce.
    """

    group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W) by mean and variance over N, H, W and the ranks of `group`."""
        if not self.training or not self._joined():
            return super().forward(x)
        value = x.float()
        count = value.new_full((1,), value.numel() / value.shape[1])
        # Both functions keep x for the backward pass instead of its fp32 copy, which is twice as
        # large.
        sums = torch.cat((_Moments.apply(value, x.detach()), count))
        sums = self._over_ranks(sums)
        total, squares, count = sums.split((self.num_features, self.num_features, 1))
        mean = total / count
        # Rounding can make the difference of the two means slightly negative.
        variance = (squares / count - mean.square()).clamp_min(0.0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1.0), self.momentum)
        scale = self.weight.float() * torch.rsqrt(variance + self.eps)
        shift = self.bias.float() - mean * scale
        return (_Scaled.apply(value, x.detach(), scale) + shift[:, None, None]).to(x.dtype)

    def _joined(self) -> bool:
        """Whether there are ranks to share statistics with."""
        return dist.is_initialized()

    def _over_ranks(self, sums: Tensor) -> Tensor:
        """The sum of `sums` over the ranks, differentiable."""
        return all_reduce(sums, group=self.group if self.group is not None else dist.group.WORLD)


class _Moments(torch.autograd.Function):
    """(2C,): sums of a value (N, C, H, W) and of its square over N, H and W, both fp32.

    `kept` is the value in its original dtype, which is saved for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, kept: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(kept)
        return torch.cat((value.sum((0, 2, 3)), value.square().sum((0, 2, 3))))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """d sum(v) = 1, d sum(v^2) = 2 v."""
        (kept,) = ctx.saved_tensors
        total, squares = (each[:, None, None] for each in gradient.chunk(2))
        return kept.float().mul_(2 * squares).add_(total), None


class _Scaled(torch.autograd.Function):
    """A value (N, C, H, W) times a scale (C,), both fp32; saves the original, like `_Moments`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, kept: Tensor, scale: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(kept, scale)
        return value * scale[:, None, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        """Gradients of the value and of the scale."""
        kept, scale = ctx.saved_tensors
        return gradient * scale[:, None, None], None, (gradient * kept).sum((0, 2, 3))


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution of channels-last images as one matrix product.

    With one thread, torch 2.13 runs 1x1 fp32 convolutions on the CPU in a path that copies
    channels-last images to channels-first and back. The product of (pixels, channels) needs no
    copy; the difference is about 6% of a training step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in channels-last memory -> (N, C', H, W), also channels-last."""
        return self.product(x, self.weight, self.bias)

    @staticmethod
    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with a weight (C', C, 1, 1) and a bias (C',)."""
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def exchange_layers(
    net: nn.Module,
    *,
    low_precision: bool,
    sync_bn: bool,
    pointwise: bool,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Exchange layers of a training model in place.

    Args:
        low_precision: whether the parameters will be bf16 or fp16, so that BatchNorm must compute
            in fp32.
        sync_bn: whether BatchNorm computes its statistics over the ranks of `group`.
        pointwise: whether 1x1 convolutions run as matrix products (CPU, fp32, channels-last).
        group: the data-parallel group, for `sync_bn`.
    """
    own_shared_modules(net)
    for module in net.modules():
        # `type(...) is`, not isinstance: subclasses compute something else.
        if type(module) is nn.BatchNorm2d:
            if sync_bn:
                module.__class__ = SyncBatchNormFloat32
                module.group = group
            elif low_precision:
                module.__class__ = BatchNormFloat32
        elif pointwise and type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = PointwiseConv


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
