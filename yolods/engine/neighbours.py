"""A stage's links, made together and met together, before a step needs the first of them.

NCCL makes a communicator when its members first use it, and whoever comes first waits for the others on the host, even
in `isend` and `irecv`. Two stages that came to two communicators in unlike orders, in the middle of a step, would wait
for each other for ever. So every link meets its peer when it is made, all ranks keep to one order of the links, and
from then on nothing that a stage starts can stop it (DeepSpeed 0.19.8, runtime/pipe/engine.py:225, does likewise).

Where the process group is bound to a device, as DeepSpeed 0.19.8 binds it, torch 2.13 makes NCCL's communicators within
`new_group` already, by splitting that of all ranks: `Grid` makes its groups on all ranks in one order, and to meet then
costs a message.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yolods.cluster.grid import Grid
from yolods.engine.link import Link

FORWARD, BACKWARD, LABELS = 1, 2, 3
"""Tags within the hosts' group, where 0 is everybody else's."""


@dataclass(frozen=True)
class Neighbours:
    """What a stage sends on and receives from; None where it has no such neighbour."""

    from_before: Link | None
    """Activations from the stage before."""
    to_before: Link | None
    """Their gradients back to it."""
    to_after: Link | None
    """Activations to the stage after."""
    from_after: Link | None
    """Their gradients from it."""
    labels: Link | None
    """Targets from the first stage to the last, between hosts; None on other stages, and where there is but one."""


def connect(grid: Grid, device: torch.device) -> Neighbours:
    """Make this rank's links; each has met its peer. A collective."""
    neighbours = _make(grid, device)
    for boundary in _in_order(grid):
        _meet(neighbours, before=boundary < grid.stage)
    return neighbours


def _make(grid: Grid, device: torch.device) -> Neighbours:
    hosts = grid.host_group
    from_before = to_before = to_after = from_after = labels = None
    if not grid.first:
        peer, boundary = grid.neighbour(-1), grid.stage - 1
        from_before = Link(peer, grid.forward_group(boundary), device, headers=hosts, tag=FORWARD)
        to_before = Link(peer, grid.backward_group(boundary), device, headers=hosts, tag=BACKWARD)
    if not grid.last:
        peer, boundary = grid.neighbour(1), grid.stage
        to_after = Link(peer, grid.forward_group(boundary), device, headers=hosts, tag=FORWARD)
        from_after = Link(peer, grid.backward_group(boundary), device, headers=hosts, tag=BACKWARD)
    if grid.first != grid.last:
        peer = grid.rank_at(grid.stages - 1 if grid.first else 0, grid.replica)
        labels = Link(peer, hosts, torch.device("cpu"), headers=hosts, tag=LABELS)
    return Neighbours(from_before, to_before, to_after, from_after, labels)


def _in_order(grid: Grid) -> list[int]:
    """This stage's boundaries, b between the stages b and b + 1: the even ones first, which can all meet at once."""
    mine = [boundary for boundary in (grid.stage - 1, grid.stage) if 0 <= boundary < grid.stages - 1]
    return sorted(mine, key=lambda boundary: boundary % 2)


def _meet(neighbours: Neighbours, *, before: bool) -> None:
    """Both directions over one boundary, the forward one first at both ends."""
    if before:
        assert neighbours.from_before is not None and neighbours.to_before is not None
        neighbours.from_before.await_greeting()
        neighbours.to_before.greet()
    else:
        assert neighbours.to_after is not None and neighbours.from_after is not None
        neighbours.to_after.greet()
        neighbours.from_after.await_greeting()
