"""Gradients that reach only their owners, and begin early: equal to DeepSpeed's own reduction."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.calls import Calls
from tests.ranks import on_ranks
from yolods.compat import equal_weights_stay
from yolods.config.reducing import ReductionConfig
from yolods.distributed.world import Ranks
from yolods.engine.build_reduction import lower_traffic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STEPS = 2
TWICE = {"gradient_accumulation_steps": 2}
BF16 = {"bf16": {"enabled": True}}
CASES: dict[str, dict[str, Any]] = {
    "zero0": {"zero_optimization": {"stage": 0}, **TWICE},
    "zero1": {"zero_optimization": {"stage": 1}, **TWICE},
    "zero2": {"zero_optimization": {"stage": 2}, **TWICE},
    "zero1 apart": {"zero_optimization": {"stage": 1, "contiguous_gradients": False}},
    "zero1 bf16 sent": {"zero_optimization": {"stage": 1}, "communication_data_type": "bf16"},
    "zero1 bf16": {"zero_optimization": {"stage": 1}, **BF16},
    "zero1 bf16 kept": {
        "zero_optimization": {"stage": 1},
        **BF16,
        "data_types": {"grad_accum_dtype": "fp32"},
    },
    "zero2 bf16": {"zero_optimization": {"stage": 2}, **BF16},
    "zero2 bf16 added in fp32": {
        "zero_optimization": {"stage": 2},
        **BF16,
        **TWICE,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    },
}
BUCKET = 600
"""Elements. The largest of the model's gradients has more, and some buckets have several."""
ACCUMULATED = ("zero2", "zero2 bf16 added in fp32")
"""The cases that can be reduced after every micro-batch or once."""
REDUCING = {"all_reduce", "exchange", "reduce"}


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.SiLU()) for _ in range(6)]
    return nn.Sequential(*layers, nn.Conv2d(4, 64, 3), nn.Flatten(), nn.Linear(64, 3))


def _engine(ranks: Ranks, content: dict[str, Any], ours: str) -> Any:
    import deepspeed

    model = _model()
    weights = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim == 1]
    groups = [{"params": weights}, {"params": others}]
    zero = {**content["zero_optimization"], "reduce_bucket_size": BUCKET, "overlap_comm": False}
    settings = {"train_micro_batch_size_per_gpu": 2, "zero_allow_untested_optimizer": True}
    settings |= {**content, "zero_optimization": zero}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(groups, 0.1, momentum=0.9),
        config=settings,
        dist_init_required=False,
    )
    if ours:
        stage = content["zero_optimization"]["stage"]
        reduction = ReductionConfig(owned=stage > 0, overlapped=True, once=ours)
        lower_traffic(engine, SimpleNamespace(zero_stage=stage, reduction=reduction), ranks)
    return engine


def _trained(ranks: Ranks, calls: Calls, content: dict[str, Any], ours: str) -> dict[str, Any]:
    """Weights after a few steps, bytes put into reductions in one, and those before the backward
    pass was over."""
    engine = _engine(ranks, content, ours)
    accumulation = content.get("gradient_accumulation_steps", 1)
    first = next(engine.module.parameters())
    early: list[int] = []
    first.register_hook(lambda gradient: early.append(_bytes(calls)))
    for step in range(STEPS):
        calls.take()
        for place in range(accumulation):
            torch.manual_seed(100 * step + 10 * place + ranks.rank)
            images = torch.randn(2, 4, 15, 15).to(first.dtype)
            engine.set_gradient_accumulation_boundary(place == accumulation - 1)
            engine.backward(engine(images).float().square().sum(), scale_wrt_gas=False)
            if place < accumulation - 1:
                engine.step()
        bytes_ = _bytes(calls)
        engine.step()
    weights = [each.detach().float().clone() for each in engine.module.parameters()]
    engine.destroy()
    del engine
    gc.collect()
    return {"weights": weights, "bytes": bytes_, "early": early[-1]}


def _bytes(calls: Calls) -> int:
    """Bytes that a ring, or an exchange of parts, makes two ranks send on average."""
    made = [call for call in calls.made if call.operation in REDUCING]
    return sum(
        call.elements * call.size * (2 if call.operation == "all_reduce" else 1) for call in made
    )


def starts(ranks: Ranks, within: Calls) -> dict[str, Any]:
    """On a rank: the start of a run with equal weights, and with others on every rank."""
    import deepspeed

    found = {}
    for name, seed in (("equal", 0), ("different", ranks.rank)):
        told: list[str] = []
        within.take()
        with equal_weights_stay(told.append):
            engine, *_ = deepspeed.initialize(
                model=_model(seed),
                optimizer=torch.optim.SGD(_model().parameters(), 0.1),
                config={"train_micro_batch_size_per_gpu": 2},
                dist_init_required=False,
            )
        calls = [call.operation for call in within.take()]
        weights = [each.detach().clone() for each in engine.module.parameters()]
        found[name] = {"told": told, "calls": calls, "weights": weights}
    return found


def measure(
    ranks: Ranks, within: Calls, backend: str, names: list[str]
) -> dict[str, dict[str, Any]]:
    """On a rank: DeepSpeed's reduction and ours, case by case."""
    import torch.distributed as dist

    if backend == "nccl":  # the way that it takes; gloo carries it
        dist.get_backend = lambda group=None: "nccl"
    return {
        name: {
            "theirs": _trained(ranks, within, content, ""),
            "ours": _trained(ranks, within, content, "micro_batch"),
            **({"once": _trained(ranks, within, content, "step")} if name in ACCUMULATED else {}),
        }
        for name, content in CASES.items()
        if name in names
    }


@pytest.mark.parametrize(
    ("size", "backend", "names"),
    [
        (2, "gloo", list(CASES)),
        (3, "gloo", ["zero0", "zero1", "zero2"]),
        (2, "nccl", ["zero1", "zero2", "zero1 bf16"]),
    ],
)
def test_the_sums_are_deepspeeds(size: int, backend: str, names: list[str]) -> None:
    """Bit for bit on two ranks; on three the order of the sums differs."""
    found = on_ranks(
        "tests.dist.test_early_reduction:measure",
        [size],
        timeout=90,
        within="tests.calls:recorded",
        backend=backend,
        names=names,
    )[size]
    for name in names:
        for rank in found:
            check(name, size, rank[name])


def check(name: str, size: int, found: dict[str, Any]) -> None:
    """Compare what a rank has found in one case."""
    stage = CASES[name]["zero_optimization"]["stage"]
    ours, theirs = found["ours"], found["theirs"]
    limit = 0.0 if size == 2 else 1e-6
    assert _apart(ours, theirs) <= limit, name
    # Without buckets, DeepSpeed's BF16_Optimizer reduces as before.
    owned = stage > 0 and "kept" not in name
    assert ours["bytes"] == theirs["bytes"] / (2 if owned else 1), name
    if "apart" not in name and "kept" not in name:
        assert ours["early"] > 0.7 * ours["bytes"], name
    if stage < 2:
        assert theirs["early"] == 0, name
    if "once" in found:
        assert _apart(found["once"], theirs) < 1e-6
        assert found["once"]["bytes"] == ours["bytes"] / 2


def test_a_start_broadcasts_only_weights_that_differ() -> None:
    first, second = on_ranks(
        "tests.dist.test_early_reduction:starts", [2], timeout=60, within="tests.calls:recorded"
    )[2]
    for rank in (first, second):
        assert rank["equal"]["told"] == [] and "broadcast" not in rank["equal"]["calls"]
        assert len(rank["different"]["told"]) == 1
        assert rank["different"]["calls"].count("broadcast") == len(rank["equal"]["weights"])
        for name in ("equal", "different"):
            pairs = zip(rank[name]["weights"], _model().parameters(), strict=True)
            assert all(torch.equal(mine, other) for mine, other in pairs), name


def _apart(mine: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative distance of a weight."""
    pairs = zip(mine["weights"], other["weights"], strict=True)
    return max(float((one - two).norm() / two.norm().clamp_min(1e-30)) for one, two in pairs)
