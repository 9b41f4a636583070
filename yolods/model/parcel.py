"""Small tensors from the host to a device: all of them in one copy, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on `device`; themselves where that is the host.

    A copy from pageable memory holds the host up until the device has come to it, one from pinned memory does not.
    torch's allocator gives pinned memory to nobody else before its copy is done.

    Args:
        tensors: on the host; those of wider types first, so that each begins where its type may begin.
        device: where to.
    """
    if device.type == "cpu":
        return list(tensors)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    parcel = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, size, end in zip(tensors, sizes, accumulate(sizes), strict=True):
        parcel[end - size : end].view(tensor.dtype).copy_(tensor.reshape(-1))
    arrived = parcel.to(device, non_blocking=True).split(sizes)
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(arrived, tensors, strict=True)]
