"""The "fp16" block of a DeepSpeed JSON, typed: the loss scale of fp16 and of fp16 autocast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fp16Config:
    """DeepSpeed 0.19.8's keys and defaults (deepspeed/runtime/precision_config.py)."""

    enabled: bool = False
    """Whether the forward pass uses fp16 parameters."""
    loss_scale: float = 0.0
    """A constant scale; 0: the scale changes by the keys below."""
    initial_scale_power: int = 16
    """The initial scale is 2 to this power."""
    loss_scale_window: int = 1000
    """Steps without overflow before the scale doubles."""
    hysteresis: int = 2
    """Overflows before the scale halves."""
    consecutive_hysteresis: bool = False
    """Whether every step without overflow restores the hysteresis, not only a doubling."""
    min_loss_scale: int = 1
    """The scale does not fall below this."""


def read_fp16(block: Mapping[str, Any]) -> Fp16Config:
    """The block with its defaults filled in.

    Args:
        block: from `keys.check_keys`: checked, without null and "auto". Empty if the JSON has none.
    """
    known = {field.name for field in fields(Fp16Config)}
    return Fp16Config(**{key: value for key, value in block.items() if key in known})
