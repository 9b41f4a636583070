"""What a rank of a pipeline holds: the weights of its own stage and no others, and states as
planned.

The model is yolov5[2.0,2.0], 321 M parameters, in four stages: built for real, not trained.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch

from tests.dist.test_memory import _alive, _storages, kept_in
from tests.parity.pipes import MOMENTUM, RATE, split_engine
from tests.parity.splits import Case, batch_of
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step
from yolods.plan.stage_plan import state_bytes

pytestmark = pytest.mark.slow

MODEL, PARAMETERS, STAGES = "yolov5[2.0,2.0]", 321e6, 4
MIB = 2**20
DRAWN = 100 * MIB
"""Most that the model on paper takes: the graph's objects, and pages of the libraries read for the
first time."""
FILLING = 128 * MIB
"""Most that stays or is taken for a moment: with it the random numbers for the largest
convolution."""
SPARE = 64 * MIB
"""Most that stays beside a stage's weights: BatchNorm's statistics, and what the allocator
keeps."""

Sizes = dict[str, int]


def build_big_stage(ranks: Ranks, folder: str) -> Sizes:
    """On a rank: bytes of resident memory before, with the plan, at the most and with the stage;
    and of its weights."""
    from yolods.config import add_train_arguments, build_run_config
    from yolods.engine.build_pipeline import build_stage, plan_stages
    from yolods.model.architecture.build import architecture, parse_name
    from yolods.model.blueprint import Blueprint
    from yolods.optim.optimizers import choose_optimizer

    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = [
        "--data",
        "demo",
        "--model",
        MODEL,
        "--deepspeed_config",
        str(Path(folder) / "four.json"),
    ]
    config = build_run_config(parser.parse_args(words), world_size=ranks.size, device="cpu")
    choice = choose_optimizer(config.hyper, samples=100, batch=config.batch_size, epochs=1, nc=3)
    before = _resident()
    blueprint = Blueprint(
        architecture(parse_name(MODEL), 80, 3), tuple(map(str, range(80))), seed=0
    )
    plan = plan_stages(blueprint, config, ranks)
    gc.collect()
    drawn = _resident()
    with (
        _peak() as peak,
        mock.patch("yolods.engine.build_pipeline.build_pipeline", lambda stage, *rest: stage),
    ):
        stage, _ = build_stage(blueprint, plan, config, choice, ranks, None)
    gc.collect()
    weights = list(stage.parameters())
    assert all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    return {
        "before": before,
        "drawn": drawn,
        "peak": peak[0],
        "after": _resident(),
        "stage": 4 * sum(weight.numel() for weight in weights),
        "model": 4 * blueprint.parameters,
    }


def _resident() -> int:
    return psutil.Process().memory_info().rss


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Within: the most that this process holds, in bytes; there after."""
    Path("/proc/self/clear_refs").write_text("5")  # begins the kernel's own mark anew
    found: list[int] = []
    yield found
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found.append(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))


@pytest.fixture(scope="module")
def big_stages(tmp_path_factory: pytest.TempPathFactory) -> list[Sizes]:
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "four.json").write_text(json.dumps({"pipeline": {"stages": STAGES}}))
    found = on_ranks(
        "tests.dist.test_layouts:build_big_stage", (STAGES,), timeout=100, folder=str(folder)
    )[STAGES]
    for sizes in found:
        print({key: round(value / MIB) for key, value in sizes.items()})
    return found


def test_stages_share_a_model_that_none_of_them_holds(big_stages: list[Sizes]) -> None:
    whole = big_stages[0]["model"]
    assert whole == pytest.approx(4 * PARAMETERS, rel=0.01)
    assert sum(sizes["stage"] for sizes in big_stages) == whole
    assert all(sizes["stage"] < 0.6 * whole for sizes in big_stages)


def test_a_rank_holds_its_stage_and_little_else(big_stages: list[Sizes]) -> None:
    for sizes in big_stages:
        assert sizes["drawn"] - sizes["before"] < DRAWN
        assert sizes["after"] - sizes["drawn"] < sizes["stage"] + SPARE
        assert sizes["peak"] - sizes["drawn"] < sizes["stage"] + FILLING
        assert sizes["after"] - sizes["drawn"] > 0.95 * sizes["stage"], (
            "the stage was not there to be measured"
        )
        assert sizes["peak"] - sizes["before"] < sizes["model"], "a whole model would have passed"


COUNTED = [
    Case(cuts=(13,), replicas=2, zero=0, optimizer="AdamW"),
    Case(cuts=(13,), replicas=2, zero=1, optimizer="AdamW"),
    Case(cuts=(13,), replicas=2, zero=0, precision="bf16", optimizer="AdamW"),
    Case(cuts=(13,), replicas=2, zero=1, precision="bf16", optimizer="AdamW"),
    Case(cuts=(6, 13, 18), zero=1, optimizer="AdamW"),
    Case(cuts=(6, 13, 18), zero=1, precision="bf16", optimizer="AdamW"),
]


def count_states(ranks: Ranks, folder: str) -> dict[str, float]:
    """On a rank: bytes of model states a parameter of its stage, when all backward passes are
    done."""
    return {case.label: _count(ranks, case, Path(folder)) for case in COUNTED}


def _count(ranks: Ranks, case: Case, folder: Path) -> float:
    gc.collect()
    before = _alive()
    with split_engine(ranks, case, folder) as engine:
        reduce, counted = engine.deepspeed.allreduce_gradients, []

        def count_and_reduce() -> None:
            gc.collect()
            other = [
                *before,
                *engine.ema.state_dict()["shards"],
                *engine.ema.mean_buffers,
                *engine.net.buffers(),
            ]
            apart = _storages(
                [*other, *kept_in(engine.snapshots.snapshot), *engine.snapshots.statistics_before]
            )
            found = _storages(each for each in _alive() if each.dtype != torch.uint8)
            counted.append(sum(size for place, size in found.items() if place not in apart))
            reduce()

        engine.deepspeed.allreduce_gradients = count_and_reduce
        step = Step(0, case.micro_batches, 0, (RATE, RATE, RATE), MOMENTUM)
        for _ in range(2):  # Adam has its moments from the end of the first step on
            mine = [
                batch_of(case, place, engine.mesh.replica) for place in range(case.micro_batches)
            ]
            engine.train_step(step, iter(mine))
        return counted[1] / sum(parameter.numel() for parameter in engine.net.parameters())


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = str(tmp_path_factory.mktemp("states"))
    return on_ranks("tests.dist.test_layouts:count_states", (4,), timeout=100, folder=folder)[4]


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: case.label.replace(" ", "-"))
def test_states_are_those_that_the_plan_counts_on(
    counted: list[dict[str, float]], case: Case
) -> None:
    planned = state_bytes(case.precision, case.zero, case.replicas)
    for rank in counted:
        assert rank[case.label] == pytest.approx(planned, rel=0.03)
