"""Bytes of model states that a rank holds, counted from real tensors, against the formulas of the
ZeRO paper.

P parameters on N ranks, bf16 with Adam: weights and gradients of 2 bytes each, and 12 bytes of fp32
master and two moments (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1, K = 12):

    stage                     0        1               2               3
    bytes a rank              16 P     4 P + 12 P/N    2 P + 14 P/N    16 P/N
    moving average, apart      4 P     4 P/N           4 P/N           4 P/N
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.small import Small, small_engine
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(220)]

STAGES, SIZES = (0, 1, 2, 3), (2, 4)
BUCKET = 20_000
"""Elements of a communication buffer: 1% of the 2.5 M parameters, so that buffers pass for what
they are."""
STEPS = 2

ZERO: dict[int, dict[str, Any]] = {
    0: {},
    1: {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
    2: {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
    3: {
        "reduce_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": 0,  # else small parameters stay whole on every rank
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    },
}

Counted = dict[str, float]


def paper(stage: int, ranks: int) -> float:
    """Bytes a parameter."""
    return {0: 16.0, 1: 4 + 12 / ranks, 2: 2 + 14 / ranks, 3: 16 / ranks}[stage]


def measure(ranks: Ranks, folder: str) -> dict[int, Counted]:
    """On a rank: bytes a parameter under each stage, at the fullest moment between a backward pass
    and the step."""
    return {stage: _count(ranks, Path(folder) / f"zero{stage}.json") for stage in STAGES}


def _count(ranks: Ranks, file: Path) -> Counted:
    gc.collect()
    before = (
        _alive()
    )  # held until the end, so that none of their addresses is given to another tensor
    with small_engine(ranks, file, optimizer="AdamW", lr0=0.001) as small:
        moments: list[Counted] = []
        take_step = small.engine.deepspeed.step

        def count_and_step() -> None:
            if number == STEPS - 1:  # Adam has its moments from the end of the first step on
                moments.append(_sort(small, before))
            take_step()

        small.engine.deepspeed.step = count_and_step
        for number in range(STEPS):
            small.step(number)
        return max(moments, key=lambda counted: counted["states"])


def _sort(small: Small, before: list[Tensor]) -> Counted:
    """Bytes a parameter of every tensor that the engine has brought to life; apart from them the
    moving average, and the snapshot that a run goes back to, which is in host memory where the
    states are on a GPU.

    Not counted as model states: the running statistics, which every layout holds whole and ZeRO
    does not speak of, and uint8, which are the images. There are no activations between a backward
    pass and the step.
    """
    gc.collect()
    engine = small.engine
    average = _storages(engine.ema.state_dict()["shards"])
    snapshot = _storages(kept_in(engine.snapshots.snapshot))
    other = _storages(
        [
            *before,
            *engine.ema.mean_buffers,
            *engine.net.buffers(),
            *engine.snapshots.statistics_before,
        ]
    )
    alive = _storages(each for each in _alive() if each.dtype != torch.uint8)
    apart = average.keys() | snapshot.keys() | other.keys()
    parameters = sum(getattr(each, "ds_numel", each.numel()) for each in engine.net.parameters())
    counted = {
        "states": sum(size for place, size in alive.items() if place not in apart),
        "average": sum(average.values()),
        "snapshot": sum(snapshot.values()),
    }
    return {name: size / parameters for name, size in counted.items()}


def kept_in(state: Any) -> list[Tensor]:
    """Every tensor in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        return [state]
    members = (
        state.values()
        if isinstance(state, dict)
        else state
        if isinstance(state, list | tuple)
        else ()
    )
    return [tensor for each in members for tensor in kept_in(each)]


def _alive() -> list[Tensor]:
    """Every tensor of this process, gradients too, to which autograd alone may refer."""
    found = [each for each in gc.get_objects() if isinstance(each, Tensor)]
    return found + [each.grad for each in found if each.is_leaf and each.grad is not None]


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address; what several tensors share counts once, and whole."""
    kept = [
        each.untyped_storage()
        for each in tensors
        if each.layout is torch.strided and each.device.type != "meta"
    ]
    return {storage.data_ptr(): storage.nbytes() for storage in kept if storage.nbytes()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[int, Counted]]]:
    folder = tmp_path_factory.mktemp("memory")
    for stage, settings in ZERO.items():
        content = {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage, **settings}}
        if stage == 2:  # the paper's, which never holds whole gradients
            content["yolods"] = {"accumulation": {"reduce": "micro_batch"}}
        (folder / f"zero{stage}.json").write_text(json.dumps(content))
    return on_ranks("tests.dist.test_memory:measure", SIZES, timeout=85, folder=str(folder))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_model_states_are_those_of_the_paper(
    measured: dict[int, list[dict[int, Counted]]], stage: int, size: int
) -> None:
    for rank in measured[size]:
        assert rank[stage]["states"] == pytest.approx(paper(stage, size), rel=0.02)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_moving_average_is_a_shard_of_four_bytes(
    measured: dict[int, list[dict[int, Counted]]], stage: int, size: int
) -> None:
    for rank in measured[size]:
        assert rank[stage]["average"] == pytest.approx(4 if stage == 0 else 4 / size, rel=0.02)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_snapshot_is_a_copy_of_this_ranks_shards_and_no_more(
    measured: dict[int, list[dict[int, Counted]]], stage: int, size: int
) -> None:
    """fp32 masters and the average, 8 bytes; without ZeRO, DeepSpeed has made the two moments
    before the first step, when the snapshot is taken, and it has them, too: 16."""
    for rank in measured[size]:
        whole = rank[stage]["snapshot"] * (1 if stage == 0 else size)
        assert whole == pytest.approx(16 if stage == 0 else 8, rel=0.03)
