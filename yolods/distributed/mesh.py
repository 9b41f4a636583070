"""The mesh of pipeline stages and replicas, and its process groups.

    4 ranks, 2 stages x 2 replicas            stages side by side    replicas side by side
                          stage 0  stage 1
    replica 0                rank 0  rank 1        0 1                    0 2
    replica 1                rank 2  rank 3        2 3                    1 3

Hosts hold consecutive ranks. "Stages side by side" therefore keeps the traffic across the cuts
within a host, and "replicas side by side" keeps the gradients' all-reduce within it. `choose_order`
keeps the larger of the two within a host.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.distributed as dist

from yolods.distributed.world import COLLECTIVE, Ranks
from yolods.errors import UserError

Order = Literal["stages", "replicas"]
"""Which coordinate changes fastest with the rank."""


@dataclass(frozen=True)
class Coordinates:
    """A rank's coordinates on the mesh."""

    stage: int
    """Part of the model, from 0."""
    replica: int
    """Share of the data, from 0."""


def coordinates(rank: int, stages: int, replicas: int, order: Order) -> Coordinates:
    """Coordinates of a rank."""
    if order == "stages":
        return Coordinates(rank % stages, rank // stages)
    return Coordinates(rank // replicas, rank % replicas)


def rank_at(stage: int, replica: int, stages: int, replicas: int, order: Order) -> int:
    """The rank at the given coordinates; inverse of `coordinates`."""
    return replica * stages + stage if order == "stages" else stage * replicas + replica


def crossing_bytes(
    stages: int,
    replicas: int,
    slots: int,
    order: Order,
    boundary_bytes: list[int],
    gradient_bytes: list[int],
) -> int:
    """Bytes per step that leave a host.

    Args:
        slots: ranks per host, the same on all hosts.
        boundary_bytes: bytes per step over each of the P - 1 cuts of one replica, both directions.
        gradient_bytes: bytes of each stage's gradients; a ring all-reduce sends about twice as much
            over each link.
    """

    def host(stage: int, replica: int) -> int:
        # Hosts hold consecutive ranks, so the quotient is the host's index.
        return rank_at(stage, replica, stages, replicas, order) // slots

    cuts = sum(
        boundary_bytes[cut]
        for replica in range(replicas)
        for cut in range(stages - 1)
        if host(cut, replica) != host(cut + 1, replica)
    )
    # Without replicas there is no all-reduce of gradients.
    if replicas == 1:
        return cuts
    links = sum(
        2 * gradient_bytes[stage]
        for stage in range(stages)
        for replica in range(replicas)
        if host(stage, replica) != host(stage, (replica + 1) % replicas)
    )
    return cuts + links


def choose_order(
    stages: int, replicas: int, slots: int, boundary_bytes: list[int], gradient_bytes: list[int]
) -> Order:
    """The order with fewer bytes leaving a host; stages side by side if both are equal."""
    orders: tuple[Order, Order] = ("stages", "replicas")
    return min(
        orders,
        key=lambda order: crossing_bytes(
            stages, replicas, slots, order, boundary_bytes, gradient_bytes
        ),
    )


# Wide: DeepSpeed calls 13 of these methods of an `mpu` by name.
class Mesh:
    """This rank's coordinates on the mesh, and its groups; passed to DeepSpeed as its `mpu`."""

    def __init__(self, ranks: Ranks, stages: int, order: Order = "stages") -> None:
        """Create the groups. A collective.

        Every rank creates every group in the same order, as `new_group` requires.

        Raises:
            UserError: the world size is not a multiple of the number of stages.
        """
        if ranks.size % stages:
            raise UserError(
                f'"pipeline": {stages} stages do not divide {ranks.size} ranks '
                f"({ranks.size} = {stages} x {ranks.size // stages} + {ranks.size % stages})"
            )
        self.ranks, self.order = ranks, order
        self.stages, self.replicas = stages, ranks.size // stages
        here = coordinates(ranks.rank, stages, self.replicas, order)
        self.stage, self.replica = here.stage, here.replica
        at, replicas = self.rank_at, range(self.replicas)
        columns = [[at(stage, replica) for replica in replicas] for stage in range(stages)]
        rows = [[at(stage, replica) for stage in range(stages)] for replica in replicas]
        self._data = self._own(columns)
        self._pipe = self._own(rows)
        # One communicator per neighbouring pair and direction: a communicator's operations run in
        # order, so on a shared NCCL communicator two ranks that both send first would deadlock.
        self._forward = self._pairs(rows)
        self._backward = self._pairs(rows)

    def _pairs(self, rows: list[list[int]]) -> list[dist.ProcessGroup | None]:
        """New groups of each two neighbouring stages; returns those of this rank's replica."""
        return [[self._pair(a, b) for a, b in pairwise(row)] for row in rows][self.replica]

    def _own(self, members: list[list[int]]) -> dist.ProcessGroup:
        groups = [dist.new_group(ranks, timeout=COLLECTIVE) for ranks in members]
        return next(
            group for group, ranks in zip(groups, members, strict=True) if self.ranks.rank in ranks
        )

    def _pair(self, a: int, b: int) -> dist.ProcessGroup | None:
        group = dist.new_group([a, b], timeout=COLLECTIVE)
        return group if self.ranks.rank in (a, b) else None

    def rank_at(self, stage: int, replica: int) -> int:
        """Global rank at the given coordinates."""
        return rank_at(stage, replica, self.stages, self.replicas, self.order)

    @property
    def first(self) -> bool:
        """Whether this stage receives the model's inputs."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether this stage produces the model's outputs."""
        return self.stage == self.stages - 1

    def neighbour(self, step: int) -> int:
        """Global rank of the previous (-1) or next (+1) stage in this replica."""
        return self.rank_at(self.stage + step, self.replica)

    def forward_group(self, boundary: int) -> dist.ProcessGroup:
        """Group for the activations over boundary b, between stages b and b + 1."""
        return self._forward[boundary]

    def backward_group(self, boundary: int) -> dist.ProcessGroup:
        """Group for the gradients over boundary b."""
        return self._backward[boundary]

    @property
    def host_group(self) -> dist.ProcessGroup | None:
        """Group of all ranks for data in host memory, on gloo whatever the device.

        A group of only some ranks would cost the others a split of their NCCL communicator (torch
        2.13, `perform_nocolor_split`), even if that group is on gloo.
        """
        return self.ranks.host_group

    @property
    def pipe_group(self) -> dist.ProcessGroup:
        """All stages of this replica."""
        return self._pipe

    @property
    def data_group(self) -> dist.ProcessGroup:
        """All replicas of this stage."""
        return self._data

    # The methods that DeepSpeed 0.19.8 calls on an `mpu`. Stages are its "model parallel" ranks,
    # over which it sums norms; there is no tensor parallelism.

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Replicas of this stage."""
        return self._data

    def get_data_parallel_rank(self) -> int:
        """This replica."""
        return self.replica

    def get_data_parallel_world_size(self) -> int:
        """Replicas."""
        return self.replicas

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Global ranks of this stage's replicas."""
        return [self.rank_at(self.stage, replica) for replica in range(self.replicas)]

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Stages of this replica."""
        return self._pipe

    def get_model_parallel_rank(self) -> int:
        """This stage."""
        return self.stage

    def get_model_parallel_world_size(self) -> int:
        """Stages."""
        return self.stages

    def get_pipe_parallel_group(self) -> dist.ProcessGroup:
        """Stages of this replica."""
        return self._pipe

    def get_pipe_parallel_rank(self) -> int:
        """This stage."""
        return self.stage

    def get_pipe_parallel_world_size(self) -> int:
        """Stages."""
        return self.stages

    def get_slice_parallel_rank(self) -> int:
        """No tensor parallelism."""
        return 0

    def get_slice_parallel_world_size(self) -> int:
        """No tensor parallelism."""
        return 1

    def get_slice_parallel_group(self) -> None:
        """No tensor parallelism."""
        return None
