"""One optimizer step of a split model under both schedules, from the same weights on the same
micro-batches.

schedules_apart(..)    on every rank of a mesh: how far zero-bubble is from 1F1B on its own stage
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.pipes import MOMENTUM, RATE, kept_gradients, split_engine
from tests.parity.small import distances, floating_buffers, worst
from tests.parity.splits import Case, batch_of
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step

LIMIT = 1e-6
"""Largest distance of gradients, losses and statistics."""


def schedules_apart(
    ranks: Ranks, case: Case, weights: dict[str, Tensor], folder: Path
) -> dict[str, Any]:
    """Largest distance and where, of `gradient`, `loss`, `statistic` and stepped `weight`; and
    whether all of them are `equal` to the bit."""
    plain, split = (
        _taken(ranks, replace(case, schedule=schedule), weights, folder)
        for schedule in ("1f1b", "zb")
    )
    return {
        **{what: worst(distances(split[what], plain[what])) for what in plain},
        "equal": all(
            torch.equal(value, plain[what][name])
            for what, found in split.items()
            for name, value in found.items()
        ),
    }


def _taken(
    ranks: Ranks, case: Case, weights: dict[str, Tensor], folder: Path
) -> dict[str, dict[str, Tensor]]:
    """What a step under the case's schedule leaves on this stage."""
    with split_engine(ranks, case, folder) as engine:
        engine.adopt(weights)
        step = Step(0, case.micro_batches, 0, (RATE, RATE, RATE), MOMENTUM)
        mine = [batch_of(case, place, engine.mesh.replica) for place in range(case.micro_batches)]
        with kept_gradients(engine, case.scale) as gradients:
            result = engine.train_step(step, iter(mine))
        masters = {
            name: engine.masters.whole(each, keep=True)
            for name, each in engine.net.named_parameters()
            if each.requires_grad
        }
        return {
            "gradient": {name: value.clone() for name, value in gradients.items()},
            "loss": {"items": torch.tensor(list(result.loss.values()))},
            "statistic": {
                name: value.clone() for name, value in floating_buffers(engine.net).items()
            },
            "weight": {name: value.clone() for name, value in masters.items()},
        }
