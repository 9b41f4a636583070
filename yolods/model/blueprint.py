"""Describes a run's model without holding its weights, and builds it: whole, or layer by layer."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolods.model.architecture.build import build
from yolods.model.graph.graph import meta_model
from yolods.model.initialise import initialise_layer, own_tensors
from yolods.model.transfer import WeightTransfer
from yolods.model.weights import PtFile

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

    def on_meta(self) -> DetectionModel:
        """A new model on the meta device, with its class names, to be made real layer by layer."""
        net = meta_model(self.layers)
        net.names = dict(enumerate(self.names))
        return net

    def values(self, weights: Path | None, *, by_name: bool = True) -> Values:
        """The values that the model's tensors start with.

        Args:
            weights: an ultralytics .pt whose matching tensors are copied.
            by_name: whether to match rows of the class head by class name.

        Raises:
            UserError: the file cannot be read, or no tensor of it fits.
        """
        given = (
            None
            if weights is None
            else WeightTransfer(self.meta, self.names, PtFile(weights), by_name=by_name)
        )
        return Values(self, given)

    def whole(self, weights: Path | None, *, by_name: bool = True) -> tuple[DetectionModel, str]:
        """The whole model on the CPU, with initial or given weights.

        Args: see `values`.

        Returns:
            the model, and a line about the copied tensors.
        """
        values = self.values(weights, by_name=by_name)
        net = build(self.layers, self.names)
        for name, layer in net.named_modules():
            values.fill(name, layer)
        return net, values.note

    @cached_property
    def skeleton(self) -> DetectionModel:
        """The model on the meta device, to write .pt files from."""
        return self.on_meta()


class Values:
    """The values that a model's tensors start with, for one layer at a time."""

    def __init__(self, blueprint: Blueprint, given: WeightTransfer | None) -> None:
        """
        Args:
            given: what is copied from a .pt; None: all values are initial ones.
        """
        self._blueprint, self._given = blueprint, given

    @property
    def note(self) -> str:
        """A line about the copied tensors; "" without a file."""
        return "" if self._given is None else self._given.note

    @torch.no_grad()
    def fill(self, name: str, layer: nn.Module) -> None:
        """Fill the tensors that one layer holds itself.

        Args:
            name: the layer's in the whole model.

        Raises:
            UserError: the file can no longer be read.
        """
        given, tensors = self._given, own_tensors(layer)
        named = [(f"{name}.{key}", tensor) for key, tensor in tensors]
        # Numbers that the file replaces need not be drawn.
        if given is None or not all(given.replaces(key) for key, _ in named):
            facts = self._blueprint
            initialise_layer(name, layer, facts.strides, len(facts.names), facts.seed)
        if given is not None:
            for key, tensor in named:
                given.fill(key, tensor)
