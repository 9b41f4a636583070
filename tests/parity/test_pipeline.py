"""A split model against plain ultralytics at equal weights: losses, gradients, running statistics, one walk backward.

Every cut between layers of YOLOv5n, cuts inside C3 and Detect, four stages, replicas, recomputing, several image sizes,
p6 and bf16. All of it, with more numbers of micro-batches, runs by `python benchmarks/parity_pipeline.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.parity.pipes import (
    FIRST,
    MOMENTUM,
    RATE,
    Case,
    Report,
    apart,
    case_of,
    faults_of,
    split_engine,
    split_step,
    weights_for,
)
from tests.parity.small import micro_batch
from tests.ranks import on_ranks
from yolods.cluster.ranks import Ranks
from yolods.engine.schedule import Step

pytestmark = pytest.mark.slow

LAYERS = range(1, 25)
"""Where YOLOv5n can be cut between layers."""
EXACT = {"channels_last": False}
INSIDE = ("2.m.0", "4.m.1", "8.close", "24.0.cls0", "24.0.cat", "24.1", "24.2.cls1", "24.2.cat")
CARRIED = 3
"""Values that cross the cut before layer 13."""

TWO_RANKS = [
    *(Case(cuts=(cut,)) for cut in LAYERS),
    *(Case(cuts=(cut,), recompute=1 if cut % 2 else 3) for cut in LAYERS),
    *(Case(cuts=(cut,), recompute=place % 2) for place, cut in enumerate(INSIDE)),
    Case(cuts=(13,), micro_batches=1),
    Case(cuts=(13,), micro_batches=4, channels_last=False),
    Case(cuts=(13,), zero=1),
    Case(cuts=(13,), sizes=(64, 96, 128, 64)),
    Case(cuts=(13,), sizes=(96, 64), recompute=3),
    Case(cuts=(13,), empty=(0,)),
    Case(cuts=(13,), empty=(0, 1), zero=1),
    Case(cuts=(13,), precision="bf16", channels_last=False),
    Case(cuts=("24.1",), precision="bf16", zero=1, recompute=1, channels_last=False),
    Case(cuts=(13,), precision="fp16", zero=1, **EXACT),
    Case(cuts=(13,), precision="autocast", **EXACT),
    Case(cuts=(13,), precision="autocast", zero=1, recompute=3, **EXACT),
    Case(cuts=(13,), freeze=2),
    Case(cuts=(13,), freeze=10, zero=1, recompute=3),
    Case(cuts=(17,), model="yolov5n6", sizes=(128,), channels_last=False),
    Case(cuts=("33.2",), model="yolov5n6", sizes=(128,), channels_last=False, recompute=3),
    Case(cuts=(), replicas=2, channels_last=False),
]
FOUR_RANKS = [
    Case(cuts=(6, 13, 18)),
    Case(cuts=(1, 3, 4), recompute=1),
    Case(cuts=("4.m.1", "13.close", "24.0.cls1"), recompute=3),
    Case(cuts=("8.close", 23, "24.2"), micro_batches=4, zero=1, channels_last=False),
    Case(cuts=(5, 10, 24), micro_batches=1),
    Case(cuts=(4, 9, 17), sizes=(64, 96, 64)),
    Case(cuts=(13,), replicas=2, channels_last=False),
    Case(cuts=(13,), replicas=2, sync_bn=True),
    Case(cuts=(9,), replicas=2, sync_bn=True, recompute=1, zero=1),
    Case(cuts=(13,), replicas=2, channels_last=False, zero=1, recompute=1),
    Case(cuts=("17.m.0",), replicas=2, channels_last=False, zero=1, slots=2),
    Case(cuts=(10,), replicas=2, channels_last=False, precision="bf16", zero=1),
]


def measure(ranks: Ranks, cases: dict[str, list[dict[str, Any]]], folder: str) -> dict[str, Any]:
    """On a rank: every comparison of this number of ranks, by label; and how often the trunk is walked backward."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda self: True  # of a CPU; it is only slow
    found: dict[str, Any] = {}
    for case in map(case_of, cases[str(ranks.size)]):
        found[case.label] = split_step(ranks, case, weights_for(ranks, case.model, Path(folder)), Path(folder))
    if ranks.size == 2:
        found["walks"] = _count_walks(ranks, Path(folder))
    return found


def _count_walks(ranks: Ranks, folder: Path) -> tuple[int, int]:
    """Times that gradients of an early activation arrive in a step of three micro-batches: ours, and tensor by tensor."""
    case = Case(cuts=(13,), micro_batches=3)
    fired: list[int] = []
    with split_engine(ranks, case, folder) as engine:

        def watch(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            output.register_hook(lambda gradient: fired.append(1))

        if engine.grid.first:
            # Everything that crosses the cut (layers 4, 10 and 12) is computed from what this layer writes.
            engine.net.get_submodule("model.1").register_forward_hook(watch)
        step = Step(0, case.micro_batches, 0, (RATE, RATE, RATE), MOMENTUM)
        engine.train_step(step, map(micro_batch, range(FIRST, FIRST + 3)))
        ours = len(fired)
        with mock.patch("torch.autograd.backward", _tensor_by_tensor) if engine.grid.first else mock.patch.dict({}):
            engine.train_step(step, map(micro_batch, range(FIRST, FIRST + 3)))
    return ours, len(fired) - ours


_backward = torch.autograd.backward


def _tensor_by_tensor(tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """One walk for each tensor that crossed the cut, as DeepSpeed's own pipeline engine takes."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        _backward([tensor], [gradient], retain_graph=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    cases = {2: [asdict(case) for case in TWO_RANKS], 4: [asdict(case) for case in FOUR_RANKS]}
    folder = str(tmp_path_factory.mktemp("pipes"))
    return on_ranks("tests.parity.test_pipeline:measure", (2, 4), timeout=120, cases=cases, folder=folder)


@pytest.mark.parametrize("case", [*TWO_RANKS, *FOUR_RANKS], ids=lambda case: case.label.replace(" ", "-"))
def test_a_split_model_computes_what_the_whole_one_does(measured: dict[int, list[dict[str, Any]]], case: Case) -> None:
    reports: list[list[Report]] = [rank[case.label] for rank in measured[case.ranks]]
    assert not [fault for place in range(len(case.sizes)) for fault in faults_of(case, place, reports)]


def test_the_comparison_is_not_of_zeros_and_sees_a_gradient_that_is_wrong(
    measured: dict[int, list[dict[str, Any]]],
) -> None:
    case = TWO_RANKS[12]
    reports = [rank[case.label] for rank in measured[2]]
    # 64 pixels hold no box that is large enough for the boxes of the largest stride.
    silent = {name for report in reports for name in report[0]["silent"]}
    assert all(name.startswith("model.24.cv2.2.") for name in silent)
    assert len(apart(reports, 0, "gradients")) > 150
    reports[0][0]["gradients"]["model.3.conv.weight"] = 2e-4
    assert len(faults_of(case, 0, reports)) == 1


def test_the_trunk_is_walked_backward_once_a_micro_batch(measured: dict[int, list[dict[str, Any]]]) -> None:
    ours, tensor_by_tensor = measured[2][0]["walks"]
    assert ours == 3
    assert tensor_by_tensor == 3 * CARRIED, "the hook would not have noticed"
