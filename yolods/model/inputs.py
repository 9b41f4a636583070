"""How images are converted for a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class InputFormat:
    """Device, data type and memory format of a model's images."""

    device: torch.device
    """Device of the model."""
    dtype: torch.dtype
    """The parameters' dtype; fp32 under autocast."""
    channels_last: bool
    """Whether images are stored as NHWC."""

    def images(self, batch: Tensor, size: int | None = None) -> Tensor:
        """Convert uint8 (N, 3, H, W) to [0, 1] in `dtype`, stretched to `size` x `size` pixels."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        # The copy is uint8, a quarter of the bytes of fp32; the device does the rest.
        images = (
            batch.to(self.device, non_blocking=True)
            .contiguous(memory_format=layout)
            .float()
            .div_(255)
        )
        if size is not None and images.shape[2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        return images.to(self.dtype)
