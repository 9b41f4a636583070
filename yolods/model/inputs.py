"""How images reach a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class InputFormat:
    """Where to, in which dtype and memory layout."""

    device: torch.device
    """Where to."""
    dtype: torch.dtype
    """The parameters' dtype; fp32 under autocast."""
    channels_last: bool
    """NHWC memory."""

    def images(self, batch: Tensor, size: int | None = None) -> Tensor:
        """uint8 (N, 3, H, W) -> [0, 1] in `dtype`; stretched to `size` x `size` pixels where given."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        images = batch.to(self.device, non_blocking=True).contiguous(memory_format=layout).float().div_(255)
        if size is not None and images.shape[2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        return images.to(self.dtype)
