"""The plan's transfers against the calls that torch.distributed gets in a real step."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.calls import Call, Calls
from tests.parity.pipes import split_engine
from tests.parity.small import ACCUMULATION, MICRO, NAMES, SIZE, small_engine
from tests.parity.splits import Case, batch_of, case_of
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import build_graph
from yolods.optim.lr_schedule import Step
from yolods.plan.cost import Cost, cost
from yolods.plan.layout import Layout, layout_of
from yolods.plan.traffic.transfers import Transfer, transfers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Sums = dict[tuple[str, int], tuple[int, int]]
"""(operation, ranks) -> bytes of the whole tensors, calls."""

OPERATIONS = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "exchange": "exchange",
    "isend": "send",
}
SETTLED = 2
"""Steps before the one that is counted: ZeRO-3 learns the order of layers in them."""
BF16 = {"bf16": {"enabled": True}}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
SMALL = {"reduce_bucket_size": 300_000, "allgather_bucket_size": 300_000}

TWO: dict[str, dict[str, Any]] = {
    "zero0 sync_bn": {"zero_optimization": {"stage": 0}},
    "zero1 small buckets": {"zero_optimization": {"stage": 1, **SMALL}},
    "zero2 autocast": {**AUTOCAST, "zero_optimization": {"stage": 2}},
    "zero2 each micro-batch": {
        "zero_optimization": {"stage": 2},
        "yolods": {"accumulation": {"reduce": "micro_batch"}},
    },
    "zero1 late": {"zero_optimization": {"stage": 1, "overlap_comm": False}},
    "zero1 theirs": {"zero_optimization": {"stage": 1, "use_multi_rank_bucket_allreduce": True}},
    "zero2 small buckets": {"zero_optimization": {"stage": 2, **SMALL}},
    "zero3 bf16": {**BF16, "zero_optimization": {"stage": 3, **SMALL}},
}
"""Layouts of two ranks."""
THREE = {
    "zero1": {"zero_optimization": {"stage": 1, **SMALL}},
    "zero3": {"zero_optimization": {"stage": 3, **SMALL}},
}
"""Layouts of three, by which few sizes can be divided."""
PIPES = (Case(cuts=(13,), replicas=2, zero=1, sync_bn=True), Case(cuts=(13,), replicas=2))


@lru_cache
def costs_of(size: int, dtype_bytes: int) -> Cost:
    """Of the model that the parity tests train."""
    graph = build_graph(architecture(parse_name("yolov5n"), len(NAMES), 3), split=True)
    return cost(graph, size, dtype_bytes)


def sums(found: list[Transfer]) -> Sums:
    """What was predicted, by operation and group."""
    totals: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for each in found:
        total = totals[each.operation, each.ranks]
        total[0], total[1] = total[0] + each.bytes, total[1] + each.calls
    return {key: (total[0], total[1]) for key, total in totals.items()}


def counted(calls: list[Call]) -> Sums:
    """What was called, by operation and group; a group of one sends nothing."""
    found = []
    for call in calls:
        operation = OPERATIONS[call.operation]
        times = call.ranks if operation == "all_gather" else 1
        ranks = 2 if operation == "send" else call.ranks
        volume = call.elements * call.size * times
        found.append(Transfer("", operation, volume, 1, ranks))
    return sums([each for each in found if each.ranks > 1])


def measure(
    ranks: Ranks, within: Calls, contents: dict[str, dict[str, Any]], folder: str
) -> dict[str, tuple[Layout, Sums]]:
    """The layout of each JSON, and the calls of a step under it."""
    found = {}
    for name, content in contents.items():
        file = Path(folder) / f"{name}-{ranks.rank}.json"
        batches = {"train_micro_batch_size_per_gpu": MICRO}
        batches["gradient_accumulation_steps"] = ACCUMULATION
        file.write_text(json.dumps({**batches, **content}))
        hyper = {"sync_bn": True} if "sync_bn" in name else {}
        with small_engine(ranks, file, optimizer="SGD", **hyper) as small:
            for number in range(SETTLED):
                small.step(number)
            within.take()
            small.step(SETTLED)
            found[name] = layout_of(small.config), counted(within.take())
    return found


def check(contents: dict[str, dict[str, Any]], size: int, folder: Path) -> None:
    """Compare on `size` ranks."""
    results = on_ranks(
        "tests.dist.test_transfers:measure",
        [size],
        timeout=300,
        within="tests.calls:recorded",
        contents=contents,
        folder=str(folder),
    )[size]
    for name in contents:
        layout, calls = results[0][name]
        (predicted,) = transfers(costs_of(SIZE, 4), layout)
        assert sums(list(predicted)) == calls, name
        assert all(rank[name][1] == calls for rank in results), name


def test_zero_on_two_ranks(tmp_path: Path) -> None:
    """Bytes and calls are the same, to the byte."""
    check(TWO, 2, tmp_path)


def test_zero_on_three_ranks(tmp_path: Path) -> None:
    """With the padding that makes sizes divisible."""
    check(THREE, 3, tmp_path)


def measure_pipes(
    ranks: Ranks, within: Calls, cases: list[dict[str, Any]], folder: str
) -> list[tuple[int, int, Sums]]:
    """Stage, boxes and calls of a step under each case."""
    found = []
    for case in map(case_of, cases):
        with split_engine(ranks, case, Path(folder)) as engine:
            batches = [batch_of(case, place, engine.mesh.replica) for place in range(2)]
            boxes = sum(len(batch["cls"]) for batch in batches)
            for _ in range(SETTLED + 1):
                within.take()
                engine.train_step(Step(0, 2, 0, (0.01,) * 3, 0.9), iter(batches))
            found.append((engine.mesh.stage, boxes, counted(within.take())))
    return found


def test_a_pipeline_with_replicas(tmp_path: Path) -> None:
    """Activations, gradients and labels between the stages; reduction over the replicas."""
    results = on_ranks(
        "tests.dist.test_transfers:measure_pipes",
        [4],
        timeout=300,
        within="tests.calls:recorded",
        once="tests.parity.pipes:draw",
        cases=[asdict(case) for case in PIPES],
        folder=str(tmp_path),
    )[4]
    costs = costs_of(SIZE, 4)
    cut = costs.graph.nodes_of(13).start
    for place, case in enumerate(PIPES):
        layout = Layout(
            imgsz=SIZE,
            micro_batch=MICRO,
            accumulation=2,
            replicas=2,
            zero_stage=case.zero,
            cuts=(cut,),
            sync_bn=case.sync_bn,
            reduce_bucket=10**7,
        )
        for rank in results:
            stage, boxes, calls = rank[place]
            predicted = transfers(costs, layout, boxes=boxes / (2 * MICRO))[stage]
            assert sums(list(predicted)) == calls, (case.label, stage)
