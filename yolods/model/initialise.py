"""Initial weights as a function of (seed, parameter name).

They are the same whichever rank, layout or order builds a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from yolods.data.sampler import keyed_seed


def initialises(root: nn.Module) -> bool:
    """Whether `initialise` fills every tensor of a model.

    A user's yaml may contain layers that only their own constructors fill.
    """
    return all(
        isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        for module in root.modules()
        if any(own_tensors(module))
    )


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module, without those of its submodules, by their names in it."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


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
        initialise_layer(name, module, strides, nc, seed)


@torch.no_grad()
def initialise_layer(name: str, layer: nn.Module, strides: Tensor, nc: int, seed: int) -> None:
    """Fill the weights that one layer holds itself; layers of other kinds do not change.

    Args: see `initialise`; `name` is the layer's in the whole model.
    """
    if isinstance(layer, nn.Conv2d):
        _convolution(name, layer, strides, nc, seed)
    elif isinstance(layer, nn.BatchNorm2d):
        layer.reset_parameters()


def _convolution(name: str, conv: nn.Conv2d, strides: Tensor, nc: int, seed: int) -> None:
    parts = name.split(".")
    if parts[-2] == "dfl":
        conv.weight.copy_(torch.arange(conv.in_channels, dtype=torch.float).view_as(conv.weight))
        return
    # Keyed by name, not drawn in sequence: a stage that lacks earlier layers gets the same values.
    # `manual_seed` takes 63 bits.
    generator = torch.Generator().manual_seed(keyed_seed("weights", seed, name) >> 1)
    reach = 1 / math.sqrt(conv.weight[0].numel())
    _fill_uniformly(conv.weight, reach, generator)
    if conv.bias is None:
        return
    if parts[-3] == "cv2":
        conv.bias.fill_(2.0)
    elif parts[-3] == "cv3":
        level = int(parts[-2])
        conv.bias.fill_(math.log(5 / nc / (640 / float(strides[level])) ** 2))
    else:
        _fill_uniformly(conv.bias, reach, generator)


def _fill_uniformly(weight: Tensor, reach: float, generator: torch.Generator) -> None:
    if weight.is_contiguous() and weight.dtype == torch.float32 and weight.device.type == "cpu":
        # In place, because the largest weights should not exist twice.
        weight.uniform_(-reach, reach, generator=generator)
    else:
        # The numbers follow the order of the elements, whatever their order in memory.
        weight.copy_(torch.empty(weight.shape).uniform_(-reach, reach, generator=generator))
