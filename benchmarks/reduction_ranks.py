"""What each rank of `reduction.py` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.reduction_report import Sent, sent_by
from tests.calls import Calls
from tests.parity.small import MICRO, Small, distance, micro_batch, small_engine
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step

SETTLED = 3
"""Steps before the one that is counted: ZeRO-3 learns the order of layers in them."""


def measure(
    ranks: Ranks, within: Calls, cases: list[dict[str, Any]], folder: str
) -> list[dict[str, Any]]:
    """On a rank: what the start and a step of each case send."""
    found = []
    for case in cases:
        within.take()
        file = _json(ranks, folder, case["zero"], case["accumulation"])
        with _old_ways() if case["old"] else nullcontext(), small_engine(ranks, file) as small:
            started = [call.operation for call in within.take()]
            sent = asdict(_counted(small, within, case["accumulation"]))
            found.append({**sent, "broadcasts": started.count("broadcast")})
        if ranks.is_main:
            print(case, found[-1], flush=True)
    return found


@contextmanager
def _old_ways() -> Iterator[None]:
    """What no key of the JSON turns off: DeepSpeed's broadcasts at the start, and its gather of
    each small parameter under ZeRO-3."""
    with (
        patch("yolods.engine.build.equal_weights_stay", lambda told: nullcontext()),
        patch("yolods.engine.build_reduction.gather_together", lambda optimizer: None),
    ):
        yield


def _json(
    ranks: Ranks, folder: str, zero: dict[str, Any], accumulation: int, **further: Any
) -> Path:
    file = Path(folder) / f"deepspeed-{ranks.rank}.json"
    batches = {
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": accumulation,
    }
    file.write_text(json.dumps({**batches, **further, "zero_optimization": zero}))
    return file


def _step(small: Small, number: int, accumulation: int) -> Any:
    ranks = small.engine.ranks
    batches = [
        micro_batch((number * accumulation + place) * ranks.size + ranks.rank)
        for place in range(accumulation)
    ]
    return small.engine.train_step(
        Step(number * accumulation, accumulation, 0, (1e-3,) * 3, 0.9), iter(batches)
    )


def _counted(small: Small, calls: Calls, accumulation: int) -> Sent:
    """A step's calls, and which of them began between the beginning of a backward pass and the
    gradient of the model's first weight, which is the last one."""
    engine, spans = small.engine.deepspeed, []
    backward = engine.backward

    def begun(*arguments: Any, **named: Any) -> Any:
        spans.append([len(calls.made)] * 2)
        return backward(*arguments, **named)

    def ended(gradient: Any) -> None:
        spans[-1][1] = len(calls.made)

    next(small.engine.net.parameters()).register_hook(ended)
    engine.backward = begun
    for number in range(SETTLED + 1):
        calls.take()
        spans.clear()
        _step(small, number, accumulation)
    made = calls.take()
    return sent_by(made, [call for start, end in spans for call in made[start:end]])


def accuracy(ranks: Ranks, within: Calls, types: list[str], folder: str) -> dict[str, Any]:
    """On a rank: how far gradients that travel in each type are from those in fp32."""
    kept: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("fp32", *types):
        further = {"communication_data_type": name}
        with small_engine(ranks, _json(ranks, folder, {"stage": 1}, 2, **further)) as small:
            small.step(0, keep_gradients=True)
            kept[name] = small.gradients
    whole = _flat(kept["fp32"])
    found = {}
    for name in types:
        apart = {
            each: distance(kept[name][each], value)
            for each, value in kept["fp32"].items()
            if value.any()
        }
        worst = max(apart, key=lambda each: apart[each])
        found[name] = {"whole": distance(_flat(kept[name]), whole)}
        found[name] |= {"worst": apart[worst], "where": worst}
    return found


def _flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.flatten() for each in gradients.values()])
