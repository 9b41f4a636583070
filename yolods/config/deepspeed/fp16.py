"""The "fp16" block of a DeepSpeed JSON, typed: how the loss scale moves, that of float16 autocast as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fp16Config:
    """DeepSpeed's own keys with DeepSpeed's own defaults (deepspeed/runtime/precision_config.py, 0.19.8)."""

    enabled: bool = False
    """Whether parameters that compute are fp16."""
    loss_scale: float = 0.0
    """A scale that never moves; 0: it moves by the keys below."""
    initial_scale_power: int = 16
    """The scale starts at 2 to this power."""
    loss_scale_window: int = 1000
    """Steps without overflow before the scale doubles."""
    hysteresis: int = 2
    """Overflows before the scale halves."""
    consecutive_hysteresis: bool = False
    """Whether every good step restores the hysteresis, not only a doubling."""
    min_loss_scale: int = 1
    """The scale does not fall below this."""


def read_fp16(block: Mapping[str, Any]) -> Fp16Config:
    """The block with its defaults filled in.

    Args:
        block: as `schema.check_keys` returns it: checked, without null and "auto". Empty where the JSON has none.
    """
    known = {field.name for field in fields(Fp16Config)}
    return Fp16Config(**{key: value for key, value in block.items() if key in known})
