"""Transfer of named CPU tensors between ranks, one after the other and without pickling them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from yolods.distributed.phases import waiting

Heading = tuple[str, torch.Size, torch.dtype] | None
"""A tensor that follows; None: there are no more."""


def send_tensors(
    tensors: Iterable[tuple[str, Tensor]], peer: int, group: dist.ProcessGroup | None
) -> None:
    """Send to a rank that calls `receive_tensors`, and wait until it has received everything.

    A tensor is asked for when the one before it has been received, so only one exists at a time.

    Args:
        tensors: CPU tensors with their names.
        peer: global rank.
        group: a group on gloo; None: the default group, which then is on gloo.
    """
    for name, tensor in tensors:
        _tell((name, tensor.shape, tensor.dtype), peer, group)
        # Empty tensors are not sent; the receiver recognises them by their shapes.
        if tensor.numel():
            with waiting():
                dist.send(tensor.contiguous(), peer, group=group)
        del tensor  # not held while the next one is made
    _tell(None, peer, group)


def receive_tensors(peer: int, group: dist.ProcessGroup | None) -> Iterator[tuple[str, Tensor]]:
    """What a rank sends with `send_tensors`, in its order, each tensor into new memory."""
    while (told := _hear(peer, group)) is not None:
        name, shape, dtype = told
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            with waiting():
                dist.recv(tensor, peer, group=group)
        yield name, tensor
        del tensor  # not held while the next one is received


def _tell(about: Heading, peer: int, group: dist.ProcessGroup | None) -> None:
    with waiting():
        dist.send_object_list([about], peer, group=group)


def _hear(peer: int, group: dist.ProcessGroup | None) -> Heading:
    box: list[Heading] = [None]
    with waiting():
        dist.recv_object_list(box, peer, group=group)
    return box[0]
