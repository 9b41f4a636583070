"""The meter's bytes against what the calls of real steps carry."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from yolods.engine.pipeline.engine import PipelineEngine
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
            assert curves["communication/seconds"] > 0 and curves["communication/still_share"] > 0
    assert set(measured(results[0]["pipeline"][0])) == {"reduce", "boundary"}
    report = results[0]["report"]
    assert isinstance(report, CommunicationStats) and results[1]["report"] is None
    assert [rank.rank for rank in report.ranks] == [0, 1]


GRIDS = (
    Case(cuts=(13,), replicas=2, micro_batches=4),
    Case(cuts=(4, 10, 17), micro_batches=4),
)
LATE = 0.15
"""Seconds: of more work for a micro-batch, or of a longer way for a message."""


@contextmanager
def slow_stage(engine: PipelineEngine) -> Iterator[None]:
    """The last stage works longer."""
    hook = engine.net.register_forward_pre_hook(
        lambda *_: time.sleep(LATE * engine.mesh.last) if engine.net.training else None
    )
    yield
    hook.remove()


@contextmanager
def slow_links(engine: PipelineEngine) -> Iterator[None]:
    """Activations and gradients arrive later than somebody comes to wait for them."""
    meter: Any = engine.traffic
    after = meter.after

    def later(call: Any, result: Any) -> None:
        if call is not None and result is True and call.carried.tag in (1, 2):
            time.sleep(LATE * (not call.carried.sent))
        after(call, result)

    meter.after = later
    yield
    meter.after = after


def one_step(engine: PipelineEngine, case: Case, ranks: Ranks) -> CommunicationStats | None:
    """What is said of it."""
    images = [batch_of(case, place, engine.mesh.replica) for place in range(case.micro_batches)]
    began = time.perf_counter()
    engine.traffic.begin()
    engine.train_step(Step(0, case.micro_batches, 0, (0.0,) * 3, 0.9), iter(images))
    engine.traffic.end(time.perf_counter() - began)
    return engine.traffic.report(ranks)


def waits_of_a_grid(ranks: Ranks, grid: int, folder: str) -> tuple[Any, ...]:
    """A step with a slow stage and one with slow links; the stage of this rank."""
    case = GRIDS[grid]
    with split_engine(ranks, case, Path(folder)) as engine:
        for _ in range(2):
            one_step(engine, case, ranks)
        with slow_stage(engine):
            stage = one_step(engine, case, ranks)
        with slow_links(engine):
            links = one_step(engine, case, ranks)
        return stage, links, engine.mesh.stage


@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_a_slow_stage_is_waited_for_and_slow_links_hold(tmp_path: Path, grid: int) -> None:
    results = on_ranks(
        "tests.dist.test_traffic:waits_of_a_grid",
        [4],
        once="tests.parity.pipes:draw",
        grid=grid,
        folder=str(tmp_path),
    )[4]
    stage, links = results[0][:2]
    case, places = GRIDS[grid], [found[2] for found in results]
    for rank, place in zip(stage.ranks, places, strict=True):
        if place < case.stages - 1:
            assert rank.waiting * stage.step_seconds > 0.7 * LATE * case.micro_batches
            assert rank.held < rank.waiting / 2
    for rank in links.ranks:
        # At least the first activation's way to the last stage, and the last gradient's back.
        assert rank.held * links.step_seconds > 1.8 * LATE * (case.stages - 1)
        assert rank.waiting < rank.held / 2


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
