"""The fp16 block typed: DeepSpeed's own defaults, and the loss scale that follows."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest

from yolods.config.deepspeed.config import resolve
from yolods.config.deepspeed.fp16 import Fp16Config, read_fp16
from yolods.engine.build_stability import scale_rules
from yolods.errors import Faults
from yolods.zero.loss_scale import ScaleRules


def test_what_is_left_out_is_deepspeeds_own_default() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    theirs = DeepSpeedFP16Config()
    assert {key: getattr(theirs, key) for key in asdict(Fp16Config())} == asdict(Fp16Config())


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Fp16Config().hysteresis = 3


def test_keys_that_move_no_scale_are_no_part_of_it() -> None:
    assert read_fp16(
        {"enabled": True, "auto_cast": True, "fp16_master_weights_and_grads": False}
    ) == Fp16Config(enabled=True)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, ScaleRules(ceiling=2.0**20)),
        (
            {"initial_scale_power": 8.0, "loss_scale_window": 50},
            ScaleRules(256.0, 50, ceiling=2.0**20),
        ),
        (
            {"hysteresis": 4, "consecutive_hysteresis": True},
            ScaleRules(65536.0, 1000, 4, True, ceiling=2.0**20),
        ),
        ({"min_loss_scale": 16, "loss_scale": 0}, ScaleRules(floor=16.0, ceiling=2.0**20)),
        ({"loss_scale": 128}, ScaleRules(ceiling=2.0**20, static=128.0)),
        ({"initial_scale_power": "auto", "hysteresis": None}, ScaleRules(ceiling=2.0**20)),
    ],
)
def test_the_loss_scale_moves_by_the_json(block: dict[str, Any], expected: ScaleRules) -> None:
    faults = Faults()
    raw = {"fp16": {"enabled": True, **block}, "zero_optimization": {"stage": 1}}
    config = resolve(raw, path=None, batch_size=4, world_size=1, device="cuda", faults=faults)
    assert not faults
    assert scale_rules(config.fp16, ceiling=2.0**20) == expected


def test_autocast_goes_by_the_block_even_where_it_is_off() -> None:
    raw = {
        "fp16": {"enabled": False, "initial_scale_power": 4},
        "torch_autocast": {"enabled": True, "dtype": "float16"},
    }
    config = resolve(raw, path=None, batch_size=4, world_size=1, device="cuda", faults=Faults())
    assert (config.autocast, config.fp16.initial_scale_power) == ("fp16", 4)
