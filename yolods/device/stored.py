"""Tensors that are not in memory yet, such as those of a checkpoint, so that they are read one by
one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Stored(ABC):
    """Stands for a tensor that is read when its values are needed."""

    def __init__(self, like: Tensor) -> None:
        """
        Args:
            like: on the meta device; has the tensor's shape, strides and dtype.
        """
        self.like = like

    @property
    def shape(self) -> torch.Size:
        """The tensor's shape."""
        return self.like.shape

    def numel(self) -> int:
        """Number of elements."""
        return self.like.numel()

    @abstractmethod
    def view_as(self, other: Tensor) -> Stored:
        """The same values in the shape of `other`, which has as many elements."""

    @abstractmethod
    def write_to(self, target: Tensor) -> None:
        """Write the values into a tensor of this shape, on any device.

        Raises:
            OSError: they cannot be read.
        """

    def read(self) -> Tensor:
        """The values in new host memory."""
        values = torch.empty_like(self.like, device="cpu")
        self.write_to(values)
        return values
