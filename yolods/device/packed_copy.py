"""Small tensors from the host to a device: all of them in one copy, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on `device`; themselves where that is the host.

    A copy from pageable memory holds the host up until the device has come to it, one from pinned memory does not.
    torch gives pinned memory to nobody else before its copy is done.

    Args:
        tensors: on the host; those of wider types first, so that each begins where its type may begin.
        device: where to.
    """
    if device.type == "cpu":
        return list(tensors)
    parcel = pack(tensors, pinned=device.type == "cuda")
    return unpack(parcel.to(device, non_blocking=True), tensors)


def pack(tensors: Sequence[Tensor], *, pinned: bool) -> Tensor:
    """Their bytes, one after the other."""
    sizes = _sizes(tensors)
    parcel = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
    for tensor, size, end in zip(tensors, sizes, accumulate(sizes), strict=True):
        parcel[end - size : end].view(tensor.dtype).copy_(tensor.reshape(-1))
    return parcel


def unpack(parcel: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """What was packed, as views of the parcel; `like` tells shapes and types."""
    parts = parcel.split(_sizes(like))
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _sizes(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.numel() * tensor.element_size() for tensor in tensors]
