"""What one call of torch.distributed carries: its kind, its group, and the bytes that a rank sends.

    kind        functions                                        what for
    reduce      all_reduce, reduce, reduce_scatter, all_to_all   gradients; the sums of `sync_bn`
    gather      all_gather                                       updated or divided parameters
    boundary    send, recv                                       between the stages of a pipeline
    ours        all others, and all inside of `Meter.ours`       the numbers of a step's verdict

The bytes are payload: headers and acknowledgements are not in them. `sent_bytes` of
`plan.traffic.transfers` has the rules of the ring for all_reduce, reduce_scatter and all_gather,
with their sources. The others:

    broadcast     gloo: a binomial tree from the root (gloo/broadcast.cc); NCCL: a chain, in which
                  all but the last rank pass the tensor on
    reduce        gloo: the ring's reduce-scatter, then each rank sends its part to the root
                  (gloo/reduce.cc); NCCL: a chain to the root
    gather        every rank but the root sends its tensor
    scatter       the root sends the parts of the others
    all_to_all    every rank sends the parts of the others, which need not be equal; so does
                  yolods' own `exchange`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from yolods.plan.traffic.transfers import Transfer, sent_bytes

TRAFFIC_KINDS = ("reduce", "gather", "boundary", "ours")


@dataclass(frozen=True)
class Form:
    """Where a function of torch.distributed (2.13) takes its arguments."""

    kind: str
    payload: str
    """Name of the tensor, or of the tensors, that this rank puts in; "": there is none."""
    place: int
    """Its position."""
    group: int
    """Position of `group`."""
    peer: str = ""
    """Name of the root, or of the other rank."""
    peer_place: int = 0
    operation: str = ""
    """Its name in `Transfer`, if a ring carries it."""


FORMS = {
    "all_reduce": Form("reduce", "tensor", 0, 2, operation="all_reduce"),
    "all_reduce_coalesced": Form("reduce", "tensors", 0, 2, operation="all_reduce"),
    "reduce": Form("reduce", "tensor", 0, 3, "dst", 1),
    "reduce_scatter": Form("reduce", "input_list", 1, 3, operation="reduce_scatter"),
    "reduce_scatter_tensor": Form("reduce", "input", 1, 3, operation="reduce_scatter"),
    "all_gather": Form("gather", "tensor", 1, 2, operation="all_gather"),
    "all_gather_coalesced": Form("gather", "input_tensor_list", 1, 2, operation="all_gather"),
    "all_gather_into_tensor": Form("gather", "input_tensor", 1, 2, operation="all_gather"),
    "send": Form("boundary", "tensor", 0, 2, "dst", 1, operation="send"),
    "isend": Form("boundary", "tensor", 0, 2, "dst", 1, operation="send"),
    "recv": Form("boundary", "", 0, 2, "src", 1),
    "irecv": Form("boundary", "", 0, 2, "src", 1),
    "broadcast": Form("ours", "tensor", 0, 2, "src", 1),
    "gather": Form("ours", "tensor", 0, 3, "dst", 2),
    "scatter": Form("ours", "scatter_list", 1, 3, "src", 2),
    "all_to_all": Form("reduce", "input_tensor_list", 1, 2),
    "all_to_all_single": Form("reduce", "input", 1, 4),
    "exchange": Form("reduce", "input", 1, 4),
    "barrier": Form("ours", "", 0, 0),
}
"""Functions that move data, and yolods' own `distributed.exchange`. Those for plain objects call
these."""


@dataclass(frozen=True)
class Carried:
    """What a call carries."""

    kind: str
    """One of TRAFFIC_KINDS."""
    group: str
    """Name of the group, the same on all its ranks."""
    sent: float
    """Bytes that this rank sends."""
    peer: int | None = None
    """The rank at the other end of a send or receive, in the world's numbering."""
    tag: int = 0
    """That of a send or receive."""


def carried_by(
    function: str, arguments: Sequence[Any], named: Mapping[str, Any], backend: str
) -> Carried | None:
    """What a call carries; None if the group has no other rank, or not this one.

    Args:
        function: one of FORMS.
        arguments: by position.
        named: by name.
        backend: nccl or gloo.
    """
    form = FORMS[function]
    given = _argument(arguments, named, "group", form.group)
    group = dist.group.WORLD if given is None else given
    # A rank outside of a group has a placeholder for it.
    if not isinstance(group, dist.ProcessGroup) or group.size() == 1:
        return None
    volume = _volume(_argument(arguments, named, form.payload, form.place)) if form.payload else 0
    if function.startswith("all_to_all") or function == "exchange":
        return Carried(form.kind, group.group_name, volume - _kept(form, arguments, named, group))
    peer = _peer(form, arguments, named, group) if form.peer else None
    if form.operation:
        sent = _by_ring(form, volume, group.size(), backend)
    else:
        sent = _from(function, volume, group.rank(), group.size(), peer or 0, backend)
    if form.kind != "boundary":
        return Carried(form.kind, group.group_name, sent)
    other = dist.get_global_rank(group, peer or 0)
    tag = _argument(arguments, named, "tag", 3) or 0
    return Carried(form.kind, group.group_name, sent, other, tag)


def _argument(
    arguments: Sequence[Any], named: Mapping[str, Any], name: str, place: int
) -> Any | None:
    return arguments[place] if len(arguments) > place else named.get(name)


def _volume(tensors: Any) -> int:
    """Bytes of a tensor, or of several."""
    if tensors is None:
        return 0
    if isinstance(tensors, list | tuple):
        return sum(each.nbytes for each in tensors)
    return tensors.nbytes


def _peer(
    form: Form, arguments: Sequence[Any], named: Mapping[str, Any], group: dist.ProcessGroup
) -> int:
    """The root or the other rank, in the group's numbering."""
    own = named.get(f"group_{form.peer}")
    if own is not None:
        return own
    rank = _argument(arguments, named, form.peer, form.peer_place)
    # Without a root the first rank of the group is meant.
    return 0 if rank is None else dist.get_group_rank(group, rank)


def _kept(
    form: Form, arguments: Sequence[Any], named: Mapping[str, Any], group: dist.ProcessGroup
) -> float:
    """Bytes of the parts of an all_to_all that are this rank's own."""
    given = _argument(arguments, named, form.payload, form.place)
    if isinstance(given, list | tuple):
        return given[group.rank()].nbytes
    sizes = _argument(arguments, named, "input_split_sizes", 3)
    share = sizes[group.rank()] / max(sum(sizes), 1) if sizes else 1 / group.size()
    return given.nbytes * share


def _by_ring(form: Form, volume: int, ranks: int, backend: str) -> float:
    if form.operation == "all_gather":
        volume *= ranks
    if form.operation == "send":
        ranks = 2  # however many the group has
    return sent_bytes(Transfer(form.kind, form.operation, volume, 1, ranks), backend=backend)


def _from(function: str, volume: int, rank: int, ranks: int, root: int, backend: str) -> float:
    """Bytes that a rank sends in an operation that no ring carries.

    Args:
        volume: bytes that this rank puts in.
        root: the operation's, in the group's numbering, as `rank`.
    """
    others = (ranks - 1) / ranks
    behind = (rank - root) % ranks
    if function == "broadcast":
        return volume * (_children(behind, ranks) if backend == "gloo" else behind < ranks - 1)
    if function == "reduce":
        part = volume / ranks
        return (
            volume * others + part * (rank != root)
            if backend == "gloo"
            else volume * (rank != root)
        )
    if function == "gather":
        return volume * (rank != root)
    if function == "scatter":
        return volume * others * (rank == root)
    return volume * others


def _children(place: int, ranks: int) -> int:
    """To how many ranks a rank passes a tensor on in a binomial tree, `place` behind its root."""
    return sum(
        place < 2**turn and place + 2**turn < ranks for turn in range((ranks - 1).bit_length())
    )
