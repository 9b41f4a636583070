"""What judges an engine's steps, by the JSON's words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from yolods.config.deepspeed.config import DeepSpeedConfig, resolve
from yolods.distributed.world import Share
from yolods.engine.build_stability import build_stability
from yolods.errors import Faults
from yolods.stability.controller import Stability, StockStability
from yolods.zero.master_weights import masters_of


class Alone:
    """The only rank."""

    rank, size, device = 0, 1, torch.device("cpu")

    def to_main(self, value):
        return [value]

    def from_main(self, value):
        return value


def layout(**raw: Any) -> DeepSpeedConfig:
    faults = Faults()
    made = resolve(raw, path=None, batch_size=4, world_size=1, device="cpu", faults=faults)
    assert not faults
    return made


def engine() -> SimpleNamespace:
    """What DeepSpeed makes of fp32 without ZeRO: the parts that are looked at."""
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    return SimpleNamespace(module=net, optimizer=optimizer, torch_autocast_z0_gradscaler="theirs")


def built(made: SimpleNamespace, config: DeepSpeedConfig) -> Stability | StockStability:
    return build_stability(made, masters_of(made.optimizer), config, Alone(), Share(0, 1))


def test_stock_handling_leaves_the_engine_as_it_is():
    made = engine()
    before, step = dict(vars(made)), made.optimizer.step
    assert isinstance(
        built(made, layout(yolods={"overflow": {"handling": "stock"}})), StockStability
    )
    assert (
        vars(made) == before and made.optimizer.step == step and "step" not in vars(made.optimizer)
    )


def test_our_own_handling_takes_the_place_of_deepspeeds_clipping_and_scale():
    made = engine()
    made.clip_fp32_gradients = lambda: pytest.fail("DeepSpeed clips")
    judged = built(made, layout(gradient_clipping=1.0))
    assert isinstance(judged, Stability)
    made.clip_fp32_gradients()
    assert made.torch_autocast_z0_gradscaler is None
    assert "step" in vars(made.optimizer), "DeepSpeed's step would look at the gradients by itself"
