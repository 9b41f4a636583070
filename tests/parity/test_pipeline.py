"""A split model against plain ultralytics at equal weights: losses, gradients, running statistics,
one walk backward.

A sample of cuts between layers of YOLOv5n, of cuts inside C3 and Detect, four stages, replicas,
recomputing, several image sizes, p6 and low precision. `python benchmarks/parity_pipeline.py` runs
every cut under each of them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.half import allow_fp16
from tests.parity.pipes import (
    MOMENTUM,
    RATE,
    SHAPES,
    apart,
    faults_of,
    split_engine,
    split_prediction,
    split_step,
)
from tests.parity.small import micro_batch
from tests.parity.splits import FIRST, Case, case_of
from tests.parity.whole import Report, weights_for
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step

pytestmark = pytest.mark.slow

LAYERS = (1, 9, 13, 21, 24)
"""Of the 24 places between layers where YOLOv5n can be cut: at its ends, before the pooling, where
one value crosses the cut and where up to three do, in the backbone and in both ways of the neck;
other cases are cut at 4, 10 and 17."""
EXACT: dict[str, Any] = {"channels_last": False}
"""Rounds as plain ultralytics does: what differs is the split's own."""
INSIDE = ("2.m.0", "8.close", "24.0.cls0", "24.1")
CARRIED = 3
"""Values that cross the cut before layer 13."""

TWO_RANKS = [
    *(Case(cuts=(cut,)) for cut in LAYERS),
    Case(cuts=(4,), recompute=3),
    Case(cuts=(10,), recompute=1),
    *(Case(cuts=(cut,), recompute=place % 2) for place, cut in enumerate(INSIDE)),
    Case(cuts=(13,), micro_batches=1),
    Case(cuts=(13,), micro_batches=4, **EXACT),
    Case(cuts=(13,), zero=1),
    Case(cuts=(13,), sizes=(64, 96, 64)),
    Case(cuts=(13,), sizes=(96, 64), recompute=3),
    Case(cuts=(13,), empty=(0,)),
    Case(cuts=(13,), empty=(0, 1), zero=1),
    Case(cuts=(13,), precision="bf16", **EXACT),
    Case(cuts=("24.1",), precision="bf16", zero=1, recompute=1, **EXACT),
    Case(cuts=(13,), precision="fp16", zero=1, **EXACT),
    Case(cuts=(13,), precision="autocast", **EXACT),
    Case(cuts=(13,), precision="autocast", zero=1, recompute=3, **EXACT),
    Case(cuts=(13,), freeze=2, **EXACT),
    Case(cuts=(13,), freeze=10, zero=1, recompute=3, **EXACT),
    Case(cuts=(13,), freeze=10, precision="bf16", **EXACT),
    Case(cuts=(17,), model="yolov5n6", sizes=(128,), **EXACT),
    Case(cuts=("33.2",), model="yolov5n6", sizes=(128,), **EXACT, recompute=3),
    Case(cuts=(), replicas=2, **EXACT),
]
FOUR_RANKS = [
    Case(cuts=(6, 13, 18)),
    Case(cuts=(1, 3, 4), recompute=1),
    Case(cuts=("4.m.1", "13.close", "24.0.cls1"), recompute=3),
    Case(cuts=("8.close", 23, "24.2"), micro_batches=4, zero=1, **EXACT),
    Case(cuts=(4, 9, 17), sizes=(64, 96, 64)),
    Case(cuts=(13,), replicas=2, **EXACT),
    Case(cuts=(13,), replicas=2, sync_bn=True),
    Case(cuts=(9,), replicas=2, sync_bn=True, recompute=1, zero=1),
    Case(cuts=("17.m.0",), replicas=2, **EXACT, zero=1, slots=2),
    Case(cuts=(10,), replicas=2, **EXACT, precision="bf16", zero=1),
]


EVALUATED = {2: Case(cuts=("13.m.0",)), 4: Case(cuts=(4, "13.close", "24.1"), recompute=1)}
"""By ranks."""


def measure(ranks: Ranks, cases: dict[str, list[dict[str, Any]]], folder: str) -> dict[str, Any]:
    """On a rank: every comparison of this number of ranks, by label; and how often the trunk is
    walked backward."""
    allow_fp16()
    found: dict[str, Any] = {}
    for case in map(case_of, cases[str(ranks.size)]):
        found[case.label] = split_step(
            ranks, case, weights_for(ranks, case.model, Path(folder)), Path(folder)
        )
    weights = weights_for(ranks, "yolov5n", Path(folder))
    found["predicted"] = split_prediction(ranks, EVALUATED[ranks.size], weights, Path(folder))
    if ranks.size == 2:
        found["walks"] = _count_walks(ranks, Path(folder))
        found["overflow"] = _overflow(ranks, weights, Path(folder))
    return found


def _count_walks(ranks: Ranks, folder: Path) -> tuple[int, int]:
    """Times that gradients of an early activation arrive in a step of 3 micro-batches: ours, and
    tensor by tensor."""
    case = Case(cuts=(13,), micro_batches=3)
    fired: list[int] = []
    with split_engine(ranks, case, folder) as engine:

        def watch(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            output.register_hook(lambda gradient: fired.append(1))

        if engine.mesh.first:
            # Everything that crosses the cut (layers 4, 10 and 12) is computed from what this layer
            # writes.
            engine.net.get_submodule("model.1").register_forward_hook(watch)
        step = Step(0, case.micro_batches, 0, (RATE, RATE, RATE), MOMENTUM)
        engine.train_step(step, map(micro_batch, range(FIRST, FIRST + 3)))
        ours = len(fired)
        with (
            mock.patch("torch.autograd.backward", _tensor_by_tensor)
            if engine.mesh.first
            else mock.patch.dict({})
        ):
            engine.train_step(step, map(micro_batch, range(FIRST, FIRST + 3)))
    return ours, len(fired) - ours


def _overflow(ranks: Ranks, weights: dict[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    """A step in fp16 in which a gradient of the first stage is infinite; what it left behind on
    this stage."""
    case = Case(cuts=(13,), precision="fp16", zero=1)
    with split_engine(ranks, case, folder) as engine:
        engine.adopt(weights)
        before = [each.clone() for each in (*engine.masters.shards(), *engine.statistics())]
        if engine.mesh.first:
            engine.net.get_submodule("model.3.conv").weight.register_hook(
                lambda gradient: gradient * float("inf")
            )
        step = Step(0, case.micro_batches, 0, (RATE, RATE, RATE), MOMENTUM)
        result = engine.train_step(step, map(micro_batch, range(FIRST, FIRST + 2)))
        after = [*engine.masters.shards(), *engine.statistics()]
        return {
            "skipped": result.skipped,
            "unmoved": all(torch.equal(one, two) for one, two in zip(before, after, strict=True)),
            "scale": (case.scale, result.loss_scale),
            "averaged": engine.ema.updates,
        }


_backward = torch.autograd.backward


def _tensor_by_tensor(tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """One walk for each tensor that crossed the cut, as DeepSpeed's own pipeline engine takes."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        _backward([tensor], [gradient], retain_graph=True)


class _Measured(dict[int, list[dict[str, Any]]]):
    """What each rank found, by their number; measured when it is asked for, so that each has its
    own limit on time."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._begun: set[int] = set()

    def __missing__(self, size: int) -> list[dict[str, Any]]:
        if size in self._begun:
            pytest.fail("the measurement has failed in the first test that asked for it")
        self._begun.add(size)
        cases = {2: [asdict(case) for case in TWO_RANKS], 4: [asdict(case) for case in FOUR_RANKS]}
        call = {"cases": cases, "folder": self._folder}
        self[size] = on_ranks("tests.parity.test_pipeline:measure", (size,), timeout=150, **call)[
            size
        ]
        return self[size]


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, seasoned: None
) -> dict[int, list[dict[str, Any]]]:
    return _Measured(tmp_path_factory.mktemp("pipes"))


@pytest.mark.parametrize(
    "case", [*TWO_RANKS, *FOUR_RANKS], ids=lambda case: case.label.replace(" ", "-")
)
def test_a_split_model_computes_what_the_whole_one_does(
    measured: dict[int, list[dict[str, Any]]], case: Case
) -> None:
    reports: list[list[Report]] = [rank[case.label] for rank in measured[case.ranks]]
    assert not [
        fault for place in range(len(case.sizes)) for fault in faults_of(case, place, reports)
    ]


def test_the_comparison_is_not_of_zeros_and_sees_a_gradient_that_is_wrong(
    measured: dict[int, list[dict[str, Any]]],
) -> None:
    case = Case(cuts=(13,))
    reports = [rank[case.label] for rank in measured[2]]
    # 64 pixels hold no box that is large enough for the boxes of the largest stride.
    silent = {name for report in reports for name in report[0]["silent"]}
    assert all(name.startswith("model.24.cv2.2.") for name in silent)
    assert len(apart(reports, 0, "gradients")) > 150
    reports[0][0]["gradients"]["model.3.conv.weight"] = 2e-4
    assert len(faults_of(case, 0, reports)) == 1


@pytest.mark.parametrize("size", EVALUATED)
def test_a_split_model_predicts_what_the_whole_one_does(
    measured: dict[int, list[dict[str, Any]]], size: int
) -> None:
    apart, _ = measured[size][-1]["predicted"]
    assert len(apart) == len(SHAPES)
    assert max(apart) < 1e-5
    assert not any(rank["predicted"][0] for rank in measured[size][:-1])
    assert not faults_of(EVALUATED[size], 0, [[rank["predicted"][1]] for rank in measured[size]])


def test_an_overflow_in_one_stage_skips_the_step_in_all(
    measured: dict[int, list[dict[str, Any]]],
) -> None:
    for rank in measured[2]:
        found = rank["overflow"]
        assert found["skipped"] and found["unmoved"] and found["averaged"] == 0
        assert found["scale"][1] <= found["scale"][0]
    assert measured[2][0]["overflow"] == measured[2][1]["overflow"]


def test_the_trunk_is_walked_backward_once_a_micro_batch(
    measured: dict[int, list[dict[str, Any]]],
) -> None:
    ours, tensor_by_tensor = measured[2][0]["walks"]
    assert ours == 3
    assert tensor_by_tensor == 3 * CARRIED, "the hook would not have noticed"
