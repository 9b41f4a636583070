"""Transfer of named CPU tensors between ranks, without pickling and without a second copy of
all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from yolods.distributed.phases import waiting


def send_state(state: Mapping[str, Tensor], peer: int, group: dist.ProcessGroup | None) -> None:
    """Send to a rank that calls `receive_state`, and wait until it has received everything.

    Args:
        state: CPU tensors by name.
        peer: global rank.
            group: a group on gloo; None: the default group, which then is on gloo.
    """
    told = [(name, tensor.shape, tensor.dtype) for name, tensor in state.items()]
    # Empty tensors are not sent; the receiver recognises them by their shapes.
    dense = [tensor.contiguous() for tensor in state.values() if tensor.numel()]
    with waiting():
        dist.send_object_list([told], peer, group=group)
        for work in [dist.isend(tensor, peer, group=group) for tensor in dense]:
            work.wait()


def receive_state(peer: int, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Receive what a rank sends with `send_state`, in its order.

    Allocates the tensors first and receives into them, so that each exists once.
    """
    box: list[list[tuple[str, torch.Size, torch.dtype]]] = [[]]
    with waiting():
        dist.recv_object_list(box, peer, group=group)
        state = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in box[0]}
        for work in [
            dist.irecv(tensor, peer, group=group) for tensor in state.values() if tensor.numel()
        ]:
            work.wait()
    return state
