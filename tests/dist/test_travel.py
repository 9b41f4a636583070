"""Weights on their way from the hosts of a pipeline's stages to that of rank 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.parity.pipes import split_engine
from tests.parity.small import plain_model
from tests.parity.splits import Case
from tests.ranks import on_ranks
from yolods.distributed.state_transfer import receive_tensors, send_tensors
from yolods.distributed.world import Ranks

pytestmark = pytest.mark.slow

CASE = Case(cuts=(13,), replicas=2, slots=2)
"""Ranks 0 and 1, or 0 and 2, are the first replica, by the order that the grid chooses."""


def state_of(rank: int) -> dict[str, torch.Tensor]:
    """A module's, with everything that one may have in it."""
    generator = torch.Generator().manual_seed(rank)
    return {
        f"{rank}.weight": torch.rand(4, 3, 2, 2, generator=generator).contiguous(
            memory_format=torch.channels_last
        ),
        f"{rank}.columns": torch.rand(5, 6, generator=generator)[:, ::2],
        f"{rank}.half": torch.rand(7, generator=generator).bfloat16(),
        f"{rank}.empty": torch.zeros(0, 3),
        f"{rank}.batches": torch.tensor(3 + rank),
    }


def gather(ranks: Ranks) -> dict[str, torch.Tensor] | None:
    """On a rank: every other rank's state, one after the other, on rank 0."""
    group = dist.new_group(backend="gloo")
    if not ranks.is_main:
        send_tensors(state_of(ranks.rank).items(), 0, group)
        return None
    return {
        name: tensor
        for peer in range(1, ranks.size)
        for name, tensor in receive_tensors(peer, group)
    }


def collect(ranks: Ranks, folder: str) -> dict[str, Any]:
    """On a rank: the whole model's weights, this stage's own, and the collectives by which objects
    went meanwhile."""
    called: list[str] = []

    def noting(name: str) -> Any:
        call = getattr(dist, name)
        return mock.patch.object(
            dist, name, lambda *args, **others: (called.append(name), call(*args, **others))[1]
        )

    with split_engine(ranks, CASE, Path(folder)) as engine:
        objects = [
            noting(name) for name in ("gather_object", "all_gather_object", "broadcast_object_list")
        ]
        with objects[0], objects[1], objects[2]:
            whole = dict(engine.weights())
        return {"whole": whole, "own": engine.net.state_dict(), "called": called}


def test_a_state_arrives_as_it_was_sent():
    whole, *others = on_ranks("tests.dist.test_travel:gather", (3,), timeout=30)[3]
    sent = state_of(1) | state_of(2)
    assert list(whole) == list(sent) and others == [None, None]
    for name, tensor in sent.items():
        assert whole[name].dtype == tensor.dtype and torch.equal(whole[name], tensor)


def test_rank_0_has_the_whole_model_and_no_collective_of_all_ranks_has_carried_it(tmp_path):
    call = {"once": "tests.parity.pipes:draw", "folder": str(tmp_path)}
    found = on_ranks("tests.dist.test_travel:collect", (4,), timeout=60, **call)[4]
    whole, *others = (rank["whole"] for rank in found)
    assert others == [{}] * 3
    assert whole.keys() == plain_model().state_dict().keys()
    assert all(
        torch.equal(whole[name], tensor) for rank in found for name, tensor in rank["own"].items()
    )
    assert [rank["called"] for rank in found] == [[]] * 4
