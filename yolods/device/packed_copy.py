"""Sends small tensors from the host to a device, all in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on `device`; unchanged if that is the CPU.

    A copy from pageable memory blocks the host until the device reaches it; a copy from pinned
    memory does not. torch does not reuse pinned memory before the copy is complete.

    Args:
        tensors: on the host; wider data types first, so that each tensor starts at a multiple of
            its element size.
        device: destination.
    """
    if device.type == "cpu":
        return list(tensors)
    parcel = pack(tensors, pinned=device.type == "cuda")
    return unpack(parcel.to(device, non_blocking=True), tensors)


def pack(tensors: Sequence[Tensor], *, pinned: bool) -> Tensor:
    """The tensors' bytes, one after the other."""
    sizes = _sizes(tensors)
    parcel = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
    for tensor, size, end in zip(tensors, sizes, accumulate(sizes), strict=True):
        parcel[end - size : end].view(tensor.dtype).copy_(tensor.reshape(-1))
    return parcel


def unpack(parcel: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the packed tensors; `like` gives their shapes and data types."""
    parts = parcel.split(_sizes(like))
    return [
        part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, like, strict=True)
    ]


def _sizes(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.numel() * tensor.element_size() for tensor in tensors]
