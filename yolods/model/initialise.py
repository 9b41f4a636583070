"""Initial weights as a function of (seed, parameter name).

They are the same whichever rank, layout or order builds a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from yolods.data.sampler import keyed_seed


@torch.no_grad()
def initialise(root: nn.Module, strides: Tensor, nc: int, seed: int) -> None:
    """Fill every weight of a detector, or of a stage of one, as ultralytics' constructors do.

    Convolutions: torch's default, uniform in +-1/sqrt(fan-in), from a generator keyed by the
    layer's name. BatchNorm: 1 and 0. Detect's last biases: 2.0 for boxes, and log(5 / nc / (640 /
    stride)^2) for classes, from ultralytics nn/modules/head.py `bias_init`. The fixed bins of DFL:
    0, 1, 2, ...

    Args:
        root: has ultralytics' names (`model.0.conv.weight`, ...); any of them may be missing.
        strides: (levels,) pixels per cell of each detection level.
        nc: classes.
    """
    for name, module in root.named_modules():
        if isinstance(module, nn.Conv2d):
            _convolution(name, module, strides, nc, seed)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def _convolution(name: str, conv: nn.Conv2d, strides: Tensor, nc: int, seed: int) -> None:
    parts = name.split(".")
    if parts[-2] == "dfl":
        conv.weight.copy_(torch.arange(conv.in_channels, dtype=torch.float).view_as(conv.weight))
        return
    # Keyed by name, not drawn in sequence: a stage that lacks earlier layers gets the same values.
    # `manual_seed` takes 63 bits.
    generator = torch.Generator().manual_seed(keyed_seed("weights", seed, name) >> 1)
    reach = 1 / math.sqrt(conv.weight[0].numel())
    conv.weight.copy_(_uniform(conv.weight, reach, generator))
    if conv.bias is None:
        return
    if parts[-3] == "cv2":
        conv.bias.fill_(2.0)
    elif parts[-3] == "cv3":
        level = int(parts[-2])
        conv.bias.fill_(math.log(5 / nc / (640 / float(strides[level])) ** 2))
    else:
        conv.bias.copy_(_uniform(conv.bias, reach, generator))


def _uniform(like: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape).uniform_(-reach, reach, generator=generator)
