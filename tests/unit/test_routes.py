"""Routes, against a walk over all ranks of the mesh."""

from __future__ import annotations

import pytest

from tests.plans import BETWEEN, WITHIN
from yolods.distributed.mesh import rank_at
from yolods.plan.time.routes import Network, routes

SHAPES = [(1, 8, 4), (2, 4, 4), (4, 2, 4), (8, 1, 4), (2, 8, 8), (8, 2, 8), (3, 4, 4), (6, 2, 4)]


@pytest.mark.parametrize(("stages", "replicas", "slots"), SHAPES)
def test_a_route_leaves_the_host_where_its_ranks_do(stages: int, replicas: int, slots: int) -> None:
    found = routes(Network(WITHIN, BETWEEN, slots), stages, replicas)
    orders = ("stages", "replicas") if len(found) == 2 else ("stages",)
    for order, each in zip(orders, found, strict=True):

        def host(stage: int, replica: int, order: str = order) -> int:
            return rank_at(stage, replica, stages, replicas, order) // slots

        crosses = [
            any(host(cut, one) != host(cut + 1, one) for one in range(replicas))
            for cut in range(stages - 1)
        ]
        assert [link != WITHIN for link in each.boundaries] == crosses
        spread = any(
            len({host(stage, one) for one in range(replicas)}) > 1 for stage in range(stages)
        )
        assert (each.replicas != WITHIN) == spread


def test_everything_is_near_on_one_host() -> None:
    (only,) = routes(Network(WITHIN, BETWEEN, 8), 4, 2)
    assert only.replicas == WITHIN and set(only.boundaries) == {WITHIN}


def test_groups_of_a_host_share_its_link() -> None:
    """Four stages side by side on hosts of four: four rings leave each host at once."""
    abreast, _ = routes(Network(WITHIN, BETWEEN, 4), 4, 2)
    assert abreast.replicas.bandwidth == BETWEEN.bandwidth / 4
