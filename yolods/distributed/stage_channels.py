"""A stage's channels, made together and met together, before a step needs the first of them.

NCCL makes a communicator when its members first use it, and whoever comes first waits for the others on the host, even
in `isend` and `irecv`. Two stages that came to two communicators in unlike orders, in the middle of a step, would wait
for each other for ever. So every channel meets its peer when it is made, all ranks keep to one order of the channels,
and from then on nothing that a stage starts can stop it (DeepSpeed 0.19.8, runtime/pipe/engine.py:225, does likewise).

Where the process group is bound to a device, as DeepSpeed 0.19.8 binds it, torch 2.13 makes NCCL's communicators within
`new_group` already, by splitting that of all ranks: `Mesh` makes its groups on all ranks in one order, and to meet then
costs a message.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yolods.distributed.mesh import Mesh
from yolods.distributed.p2p import P2PChannel

FORWARD_TAG, BACKWARD_TAG, LABELS_TAG = 1, 2, 3
"""Tags within the hosts' group, where 0 is everybody else's."""


@dataclass(frozen=True)
class StageChannels:
    """What a stage sends on and receives from; None where it has no such neighbour."""

    from_before: P2PChannel | None
    """Activations from the stage before."""
    to_before: P2PChannel | None
    """Their gradients back to it."""
    to_after: P2PChannel | None
    """Activations to the stage after."""
    from_after: P2PChannel | None
    """Their gradients from it."""
    labels: P2PChannel | None
    """Targets from the first stage to the last, between hosts; None on other stages, and where there is but one."""


def connect(mesh: Mesh, device: torch.device) -> StageChannels:
    """Make this rank's channels; each has met its peer. A collective."""
    neighbours = _make(mesh, device)
    for boundary in _in_order(mesh):
        _meet(neighbours, before=boundary < mesh.stage)
    return neighbours


def _make(mesh: Mesh, device: torch.device) -> StageChannels:
    hosts = mesh.host_group
    from_before = to_before = to_after = from_after = labels = None
    if not mesh.first:
        peer, boundary = mesh.neighbour(-1), mesh.stage - 1
        from_before = P2PChannel(peer, mesh.forward_group(boundary), device, headers=hosts, tag=FORWARD_TAG)
        to_before = P2PChannel(peer, mesh.backward_group(boundary), device, headers=hosts, tag=BACKWARD_TAG)
    if not mesh.last:
        peer, boundary = mesh.neighbour(1), mesh.stage
        to_after = P2PChannel(peer, mesh.forward_group(boundary), device, headers=hosts, tag=FORWARD_TAG)
        from_after = P2PChannel(peer, mesh.backward_group(boundary), device, headers=hosts, tag=BACKWARD_TAG)
    if mesh.first != mesh.last:
        peer = mesh.rank_at(mesh.stages - 1 if mesh.first else 0, mesh.replica)
        labels = P2PChannel(peer, hosts, torch.device("cpu"), headers=hosts, tag=LABELS_TAG)
    return StageChannels(from_before, to_before, to_after, from_after, labels)


def _in_order(mesh: Mesh) -> list[int]:
    """This stage's boundaries, b between the stages b and b + 1: the even ones first, which can all meet at once."""
    mine = [boundary for boundary in (mesh.stage - 1, mesh.stage) if 0 <= boundary < mesh.stages - 1]
    return sorted(mine, key=lambda boundary: boundary % 2)


def _meet(neighbours: StageChannels, *, before: bool) -> None:
    """Both directions over one boundary, the forward one first at both ends."""
    if before:
        assert neighbours.from_before is not None and neighbours.to_before is not None
        neighbours.from_before.await_greeting()
        neighbours.to_before.greet()
    else:
        assert neighbours.to_after is not None and neighbours.from_after is not None
        neighbours.to_after.greet()
        neighbours.from_after.await_greeting()
