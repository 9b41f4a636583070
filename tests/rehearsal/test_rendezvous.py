"""Pipelines under NCCL's blocking first use of a communicator (first_use.py)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.parity.pipes import split_engine
from tests.parity.splits import Case, batch_of
from tests.ranks import on_ranks
from tests.rehearsal.first_use import NeverMet, first_use_waits
from yolods.distributed.mesh import Mesh
from yolods.distributed.stage_channels import connect
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step

CUTS: dict[int, tuple[int | str, ...]] = {2: (13,), 3: (6, 15), 4: (4, 9, 17)}
"""Cuts by number of stages."""
SHAPES = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2)]
"""(stages, replicas) of each mesh."""
PATIENCE = 60.0
"""Seconds that a first use waits: many, because ranks share two cores."""
SHORT = 3.0
"""Seconds for a test that must hang: both ranks are there from the beginning."""


def train_and_predict(ranks: Ranks, folder: str) -> dict[str, dict[str, object]]:
    """On a rank: the peers met in building the engine and until the end, per mesh of this size."""
    return {
        f"{stages} x {replicas}": _one(
            ranks,
            Case(
                cuts=CUTS[stages],
                replicas=replicas,
                micro_batches=stages + 1,
                schedule="zb" if stages == 3 else "1f1b",
            ),
            folder,
        )
        for stages, replicas in SHAPES
        if stages * replicas == ranks.size
    }


def _beside_nccl(ranks: Ranks) -> Ranks:
    """The ranks with a gloo group, as on GPUs."""
    return replace(ranks, host_group=dist.new_group(backend="gloo"))


def _one(ranks: Ranks, case: Case, folder: str) -> dict[str, object]:
    with (
        first_use_waits(PATIENCE) as meetings,
        split_engine(_beside_nccl(ranks), case, Path(folder)) as engine,
    ):
        made = list(meetings)
        mesh, count = engine.mesh, case.micro_batches
        step = Step(0, count, 0, (1e-3, 1e-3, 1e-3), 0.9)
        result = engine.train_step(
            step, (batch_of(case, place, mesh.replica) for place in range(count))
        )
        with engine.evaluating():
            for _ in range(2):
                engine.predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8) if mesh.first else None)
        # As after an evaluation: earlier stages finish before later ones have received.
        ranks.barrier()
        beside = [
            mesh.rank_at(stage, mesh.replica)
            for stage in (mesh.stage - 1, mesh.stage + 1)
            if 0 <= stage < case.stages
        ]
        return {"made": made, "end": list(meetings), "beside": beside, "loss": result.loss}


@pytest.mark.slow
@pytest.mark.parametrize("size", sorted({stages * replicas for stages, replicas in SHAPES}))
def test_stages_meet_when_they_are_made_and_never_wait_for_a_first_use_after(
    size: int, tmp_path: Path
) -> None:
    call = "tests.rehearsal.test_rendezvous:train_and_predict"
    found = on_ranks(
        call, (size,), timeout=100, once="tests.parity.pipes:draw", folder=str(tmp_path)
    )[size]
    for shape in found[0]:
        for rank, seen in enumerate(each[shape] for each in found):
            # One per direction.
            assert sorted(seen["made"]) == sorted(2 * [(rank, peer) for peer in seen["beside"]])
            assert seen["end"] == seen["made"]
            assert seen["loss"] == found[0][shape]["loss"] and all(seen["loss"].values())


def receive_first(ranks: Ranks, meet: bool) -> str:
    """On both ranks of a cut: start to receive before the other rank sends, then send."""
    device = torch.device("cpu")
    passed = nullcontext() if meet else mock.patch("yolods.distributed.stage_channels._meet")
    with first_use_waits(SHORT), passed:
        channels = connect(Mesh(_beside_nccl(ranks), 2), device)
        source, target = (
            channels.from_before or channels.from_after,
            channels.to_before or channels.to_after,
        )
        assert source is not None and target is not None
        for link in (source, target):
            link.expect([torch.empty(3)], "numbers")
        try:
            coming = source.receive("numbers")
            target.send([torch.full((3,), float(ranks.rank))], "numbers")
            came = str(coming.wait()[0].tolist())
            target.drain()
            return came
        except NeverMet as error:
            return str(error)


@pytest.mark.slow
def test_links_that_have_met_may_be_used_in_any_order() -> None:
    found = on_ranks("tests.rehearsal.test_rendezvous:receive_first", (2,), timeout=30, meet=True)[
        2
    ]
    assert found == ["[1.0, 1.0, 1.0]", "[0.0, 0.0, 0.0]"]


@pytest.mark.slow
def test_links_that_have_not_met_hang() -> None:
    found = on_ranks("tests.rehearsal.test_rendezvous:receive_first", (2,), timeout=30, meet=False)[
        2
    ]
    assert found == [
        "rank 0 waits for rank 1, which is elsewhere",
        "rank 1 waits for rank 0, which is elsewhere",
    ]
