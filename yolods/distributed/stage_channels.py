"""Creates and connects all channels of a stage before a step needs the first one.

NCCL creates a communicator when its members first use it, and the first member waits for the others
on the host, even in `isend` and `irecv`. Two stages that reached two communicators in different
orders in the middle of a step would deadlock. Therefore every channel greets its peer when it is
created, all ranks follow one order of the channels, and from then on nothing that a stage starts
can block it. DeepSpeed 0.19.8 does the same (runtime/pipe/engine.py:225).

Where the process group is bound to a device, as DeepSpeed 0.19.8 binds it, torch 2.13 creates
NCCL's communicators already in `new_group`, by splitting the one of all ranks. `Mesh` creates its
groups on all ranks in one order, and the greeting then costs only a message.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yolods.distributed.mesh import Mesh
from yolods.distributed.p2p import P2PChannel

FORWARD_TAG, BACKWARD_TAG, LABELS_TAG = 1, 2, 3
"""Tags within the hosts' group; 0 belongs to all other messages."""


@dataclass(frozen=True)
class StageChannels:
    """The channels on which a stage sends and receives; None if it has no such neighbour."""

    from_before: P2PChannel | None
    """Activations from the previous stage."""
    to_before: P2PChannel | None
    """Their gradients back to it."""
    to_after: P2PChannel | None
    """Activations to the next stage."""
    from_after: P2PChannel | None
    """Their gradients from it."""
    labels: P2PChannel | None
    """Targets from the first stage to the last, between hosts; None on other stages, and if there
    is only one stage."""


def connect(mesh: Mesh, device: torch.device) -> StageChannels:
    """Create this rank's channels and connect each to its peer. A collective."""
    neighbours = _make(mesh, device)
    for boundary in _in_order(mesh):
        _meet(neighbours, before=boundary < mesh.stage)
    return neighbours


def _make(mesh: Mesh, device: torch.device) -> StageChannels:
    hosts = mesh.host_group
    from_before = to_before = to_after = from_after = labels = None
    if not mesh.first:
        peer, boundary = mesh.neighbour(-1), mesh.stage - 1
        from_before = P2PChannel(
            peer, mesh.forward_group(boundary), device, headers=hosts, tag=FORWARD_TAG
        )
        to_before = P2PChannel(
            peer, mesh.backward_group(boundary), device, headers=hosts, tag=BACKWARD_TAG
        )
    if not mesh.last:
        peer, boundary = mesh.neighbour(1), mesh.stage
        to_after = P2PChannel(
            peer, mesh.forward_group(boundary), device, headers=hosts, tag=FORWARD_TAG
        )
        from_after = P2PChannel(
            peer, mesh.backward_group(boundary), device, headers=hosts, tag=BACKWARD_TAG
        )
    if mesh.first != mesh.last:
        # The last stage computes the loss. Targets are in host memory, so they cross on gloo.
        peer = mesh.rank_at(mesh.stages - 1 if mesh.first else 0, mesh.replica)
        labels = P2PChannel(peer, hosts, torch.device("cpu"), headers=hosts, tag=LABELS_TAG)
    return StageChannels(from_before, to_before, to_after, from_after, labels)


def _in_order(mesh: Mesh) -> list[int]:
    """Boundaries of this stage, b between stages b and b + 1; even ones first.

    All even boundaries can then connect at the same time, and after them all odd ones.
    """
    mine = [
        boundary for boundary in (mesh.stage - 1, mesh.stage) if 0 <= boundary < mesh.stages - 1
    ]
    return sorted(mine, key=lambda boundary: boundary % 2)


def _meet(neighbours: StageChannels, *, before: bool) -> None:
    """Connect both directions over one boundary, at both ends the forward direction first."""
    if before:
        assert neighbours.from_before is not None and neighbours.to_before is not None
        neighbours.from_before.await_greeting()
        neighbours.to_before.greet()
    else:
        assert neighbours.to_after is not None and neighbours.from_after is not None
        neighbours.to_after.greet()
        neighbours.from_after.await_greeting()
