"""The meter's bytes against what the calls of real steps carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.calls import Call, Calls
from tests.parity.pipes import split_engine
from tests.parity.small import ACCUMULATION, MICRO, small_engine
from tests.parity.splits import Case, batch_of
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step
from yolods.stats import CommunicationStats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

CASE = Case(cuts=(13,), replicas=1)


KINDS = {"all_reduce": "reduce", "exchange": "reduce", "isend": "boundary"}


def by_hand(calls: list[Call]) -> dict[str, float]:
    """MB that a rank of two sends, by the kind of its calls."""
    found: dict[str, float] = {}
    for call in calls:
        kind = KINDS.get(call.operation, "gather")
        # An all-reduce sends half of the tensor twice, a gather this rank's half of the whole once,
        # and what an exchange keeps is in all buckets together as much as what it sends.
        half = call.operation == "exchange"
        volume = call.elements * call.size / 1e6 / (1 + half)
        if call.ranks == 2:
            found[kind] = found.get(kind, 0.0) + volume
    return found


def measured(curves: dict[str, Any]) -> dict[str, float]:
    """The same of a step's record, with what is ours among the reductions."""
    found = {
        kind: curves[f"communication/sent_mb_{kind}"]
        for kind in ("reduce", "gather", "boundary")
        if f"communication/sent_mb_{kind}" in curves
    }
    found["reduce"] = found.get("reduce", 0.0) + curves["communication/sent_mb_ours"]
    return found


def zero_and_pipeline(ranks: Ranks, within: Calls, folder: str) -> dict[str, Any]:
    """Both layouts: what was counted, what was called, and a report."""
    file = Path(folder) / f"zero-{ranks.rank}.json"
    batches = {"train_micro_batch_size_per_gpu": MICRO, "gradient_accumulation_steps": ACCUMULATION}
    file.write_text(json.dumps({**batches, "zero_optimization": {"stage": 1}}))
    found: dict[str, Any] = {}
    with small_engine(ranks, file, optimizer="SGD") as small:
        small.step(0)
        within.take()
        small.engine.traffic.begin()
        small.step(1)
        found["zero"] = small.engine.traffic.end(1.0), within.take()
        found["report"] = small.engine.traffic.report(ranks)
    with split_engine(ranks, CASE, Path(folder)) as engine:
        for _ in range(2):
            images = [batch_of(CASE, place, 0) for place in range(2)]
            within.take()
            engine.traffic.begin()
            engine.train_step(Step(0, 2, 0, (0.01,) * 3, 0.9), iter(images))
            found["pipeline"] = engine.traffic.end(1.0), within.take()
    return found


def test_bytes_are_those_of_the_calls(tmp_path: Path) -> None:
    results = on_ranks(
        "tests.dist.test_traffic:zero_and_pipeline",
        [2],
        within="tests.calls:recorded",
        once="tests.parity.pipes:draw",
        folder=str(tmp_path),
    )[2]
    for rank in results:
        for layout in ("zero", "pipeline"):
            curves, calls = rank[layout]
            # The padding of the last bucket makes the halves unequal.
            assert measured(curves) == pytest.approx(by_hand(calls), rel=1e-5), layout
            assert curves["communication/calls"] == sum(call.ranks == 2 for call in calls), layout
            assert curves["communication/seconds"] > 0 and curves["communication/held_share"] > 0
    assert set(measured(results[0]["pipeline"][0])) == {"reduce", "boundary"}
    report = results[0]["report"]
    assert isinstance(report, CommunicationStats) and results[1]["report"] is None
    assert [rank.rank for rank in report.ranks] == [0, 1]


def alone(ranks: Ranks, within: Calls) -> tuple[dict[str, Any], bool]:
    """Whether anybody is told of a single process's calls."""
    from yolods.distributed import collective_waits

    with small_engine(ranks, "zero1_fp32", optimizer="SGD") as small:
        small.engine.traffic.begin()
        record = small.step(0)
        found = small.engine.traffic.end(1.0)
    assert not any(name.startswith("communication") for name in record.scalars)
    assert torch.distributed.get_world_size() == 1
    return found, collective_waits._observer is not None


def test_one_process_pays_nothing() -> None:
    found = on_ranks("tests.dist.test_traffic:alone", [1], within="tests.calls:recorded")
    assert found[1] == [({}, False)]
