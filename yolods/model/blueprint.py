"""Describes a run's model without holding its weights, and builds it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from yolods.model.architecture.build import build
from yolods.model.graph.graph import meta_model
from yolods.model.initialise import initialise
from yolods.model.weights import read_pt, transfer

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel


class Blueprint:
    """A detector without weights."""

    def __init__(self, layers: dict[str, Any], names: tuple[str, ...], seed: int) -> None:
        """
        Args:
            layers: what `build.architecture` returned.
            names: class names in the order of their ids.
            seed: determines the initial weights, together with their names.
        """
        self.layers, self.names, self.seed = layers, names, seed

    @cached_property
    def meta(self) -> DetectionModel:
        """The model on the meta device: shapes without memory."""
        return meta_model(self.layers)

    @property
    def head(self) -> nn.Module:
        """The Detect layer, for strides, class count and reg_max."""
        return self.meta.model[-1]

    @property
    def strides(self) -> Tensor:
        """(levels,) pixels per cell."""
        return self.meta.stride

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.meta.parameters())

    @property
    def grid(self) -> int:
        """Largest stride, at least 32; image sizes must be multiples of it."""
        return max(int(max(self.strides)), 32)

    def whole(self, weights: Path | None, *, by_name: bool = True) -> tuple[DetectionModel, str]:
        """The whole model on the CPU, with initial or given weights.

        Args:
            weights: an ultralytics .pt whose matching tensors are copied.
            by_name: whether to match rows of the class head by class name.

        Returns:
            the model, and a line about the copied tensors.
        """
        net = build(self.layers, self.names)
        initialise(net, net.stride, len(self.names), self.seed)
        if weights is None:
            return net, ""
        source = read_pt(weights)
        if not by_name:
            source.names = {}
        taken, total = transfer(net, source)
        return net, f"Transferred {taken}/{total} tensors from {weights}"

    @cached_property
    def skeleton(self) -> DetectionModel:
        """The model on the meta device with its class names, to write .pt files from."""
        net = meta_model(self.layers)
        net.names = dict(enumerate(self.names))
        return net
