"""Where ranks stand on a mesh of stages x replicas, which order keeps traffic within hosts, and who
talks to whom."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import pytest
import torch

from yolods.distributed.mesh import (
    Coordinates,
    Mesh,
    choose_order,
    coordinates,
    crossing_bytes,
    rank_at,
)
from yolods.distributed.world import COLLECTIVE, Ranks
from yolods.errors import UserError

ORDERS = ("stages", "replicas")
SHAPES = [(1, 1), (2, 1), (1, 3), (2, 2), (4, 1), (3, 2), (2, 5), (8, 4)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("stages", "replicas"), SHAPES)
def test_every_rank_has_one_place_and_every_place_one_rank(stages, replicas, order):
    places = [coordinates(rank, stages, replicas, order) for rank in range(stages * replicas)]
    assert sorted((each.stage, each.replica) for each in places) == sorted(
        itertools.product(range(stages), range(replicas))
    )
    for rank, here in enumerate(places):
        assert rank_at(here.stage, here.replica, stages, replicas, order) == rank
    assert places[0] == Coordinates(
        0, 0
    )  # rank 0 reads images and writes files, whatever the order


def test_places_of_the_drawing_in_the_module():
    assert [coordinates(rank, 2, 2, "stages") for rank in range(4)] == [
        Coordinates(0, 0),
        Coordinates(1, 0),
        Coordinates(0, 1),
        Coordinates(1, 1),
    ]
    assert [coordinates(rank, 2, 2, "replicas") for rank in range(4)] == [
        Coordinates(0, 0),
        Coordinates(0, 1),
        Coordinates(1, 0),
        Coordinates(1, 1),
    ]


@pytest.mark.parametrize(
    ("stages", "replicas", "slots", "boundaries", "gradients", "by_stages", "by_replicas"),
    [
        # One host: nothing leaves it.
        (2, 2, 4, [100], [10, 20], 0, 0),
        # Two hosts of two. Stages side by side: both stages' gradients cross, both ways round the
        # ring of two. Replicas side by side: both replicas' boundaries do.
        (2, 2, 2, [100], [10, 20], 2 * 2 * (10 + 20), 2 * 100),
        # Two hosts of four, four stages, two replicas: a pipeline a host, or stages 0 and 1 apart
        # from 2 and 3.
        (4, 2, 4, [1, 1000, 1], [5, 5, 5, 5], 2 * 2 * 20, 2 * 1000),
        # One rank a host: everything crosses in either order.
        (2, 2, 1, [100], [10, 20], 2 * 100 + 2 * 2 * 30, 2 * 100 + 2 * 2 * 30),
        # A single replica has no gradients to reduce.
        (3, 1, 1, [7, 9], [1000, 1000, 1000], 16, 16),
        # A single stage has no boundary.
        (1, 4, 2, [], [10], 2 * 10 * 2, 2 * 10 * 2),
    ],
)
def test_bytes_that_leave_a_host(
    stages, replicas, slots, boundaries, gradients, by_stages, by_replicas
):
    assert crossing_bytes(stages, replicas, slots, "stages", boundaries, gradients) == by_stages
    assert crossing_bytes(stages, replicas, slots, "replicas", boundaries, gradients) == by_replicas
    expected = "replicas" if by_replicas < by_stages else "stages"
    assert choose_order(stages, replicas, slots, boundaries, gradients) == expected


def meshes(
    monkeypatch: pytest.MonkeyPatch, stages: int, replicas: int, order: str
) -> tuple[list[Mesh], list[Any]]:
    """The mesh of every rank, with groups that are lists of ranks; and what each rank asked to be
    made, in order."""
    made: list[list[int]] = []
    monkeypatch.setattr(
        "torch.distributed.new_group", lambda ranks, **_: made.append(ranks) or ranks
    )
    found, asked = [], []
    for rank in range(stages * replicas):
        ranks = Ranks(rank, stages * replicas, rank, "host", torch.device("cpu"))
        found.append(Mesh(ranks, stages, order))
        asked.append(list(made))
        made.clear()
    return found, asked


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("stages", "replicas"), [(2, 2), (4, 1), (3, 2), (1, 2)])
def test_groups(monkeypatch, stages, replicas, order):
    found, asked = meshes(monkeypatch, stages, replicas, order)
    assert all(other == asked[0] for other in asked), (
        "ranks that make groups in unlike orders wait for ever"
    )
    for mesh in found:
        me = mesh.ranks.rank
        assert sorted(mesh.data_group) == sorted(
            other.ranks.rank for other in found if other.stage == mesh.stage
        )
        assert mesh.pipe_group == [mesh.rank_at(stage, mesh.replica) for stage in range(stages)]
        assert mesh.data_group.index(me) == mesh.get_data_parallel_rank() == mesh.replica
        assert mesh.pipe_group.index(me) == mesh.get_model_parallel_rank() == mesh.stage
        assert (mesh.first, mesh.last) == (mesh.stage == 0, mesh.stage == stages - 1)
        assert mesh.get_data_parallel_group_ranks() == mesh.data_group
        for step in (-1, 1):
            if 0 <= mesh.stage + step < stages:
                peer = found[mesh.neighbour(step)]
                assert (peer.stage, peer.replica) == (mesh.stage + step, mesh.replica)
                boundary = min(mesh.stage, peer.stage)
                assert (
                    mesh.forward_group(boundary)
                    == peer.forward_group(boundary)
                    == sorted_pair(mesh, peer)
                )
                assert (
                    mesh.backward_group(boundary)
                    == peer.backward_group(boundary)
                    == sorted_pair(mesh, peer)
                )
        assert mesh.host_group is mesh.ranks.host_group


def sorted_pair(mesh: Mesh, peer: Mesh) -> list[int]:
    return [each.ranks.rank for each in sorted((mesh, peer), key=lambda each: each.stage)]


def test_each_direction_over_a_boundary_has_a_group_of_its_own(monkeypatch):
    """On NCCL two ranks that both send first on a common communicator would wait for each other."""
    monkeypatch.setattr("torch.distributed.new_group", lambda ranks, **_: [*ranks])
    mesh = Mesh(Ranks(0, 2, 0, "host", torch.device("cpu")), 2)
    assert mesh.forward_group(0) is not mesh.backward_group(0)


def test_no_group_gives_up_before_the_watchdog_and_hosts_have_that_of_all_ranks(monkeypatch):
    """torch 2.13 has NCCL's groups give up after ten minutes, and plots of an evaluation may take
    longer. A gloo group of some ranks has the others split their NCCL communicator."""
    made: list[tuple[str | None, timedelta]] = []

    def new_group(ranks, timeout, backend=None):
        made.append((backend, timeout))
        return len(made) - 1

    monkeypatch.setattr("torch.distributed.new_group", new_group)
    mesh = Mesh(Ranks(0, 4, 0, "host", torch.device("cpu"), host_group="all"), 2)
    assert mesh.host_group == "all"
    assert set(made) == {(None, COLLECTIVE)}


def test_what_deepspeed_asks_of_an_mpu(monkeypatch):
    mesh = meshes(monkeypatch, 2, 3, "stages")[0][5]
    assert (mesh.stage, mesh.replica) == (1, 2)
    assert (mesh.get_data_parallel_world_size(), mesh.get_model_parallel_world_size()) == (3, 2)
    assert mesh.get_pipe_parallel_world_size() == 2 and mesh.get_pipe_parallel_rank() == 1
    assert mesh.get_data_parallel_group() == [1, 3, 5]
    assert mesh.get_model_parallel_group() == mesh.get_pipe_parallel_group() == [4, 5]
    assert (mesh.get_slice_parallel_rank(), mesh.get_slice_parallel_world_size()) == (0, 1)
    assert mesh.get_slice_parallel_group() is None


def test_ranks_that_do_not_factor_are_refused_with_the_arithmetic():
    with pytest.raises(
        UserError, match=r'^"pipeline": 3 stages do not divide 4 ranks \(4 = 3 x 1 \+ 1\)$'
    ):
        Mesh(Ranks(0, 4, 0, "host", torch.device("cpu")), 3)
