"""What two trainers are compared by: a note of every optimizer step, and how far two rows of notes
are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
"""Tensors by name."""

STATES = ("weights", "average", "statistics", "average statistics")
"""Parameters, their moving average, BatchNorm's running statistics, and the moving average of
those."""
EXACT = ("batches", "images", "epoch", "updates")
"""Whole numbers, which are equal or wrong."""
NUMBERS = ("lr", "momentum", "decay", "items", "norm")
"""What else is compared at every step."""


@dataclass
class Noted:
    """One optimizer step, as it was after it was taken."""

    batches: int
    """Batches accumulated, over all ranks."""
    images: int
    """In them."""
    epoch: int
    """From 0, of the last batch; of a step that completes a run's last batches the epoch after the
    last."""
    lr: tuple[float, ...]
    """Learning rates of the groups: decayed weights, BatchNorm weights, biases."""
    decay: tuple[float, ...]
    """Their weight decays."""
    momentum: float
    """Momentum, or Adam's beta1."""
    items: tuple[float, ...]
    """Mean loss items."""
    norm: float
    """Of the gradient, before clipping."""
    updates: int
    """Of the moving average."""
    states: dict[str, State] = field(default_factory=dict)
    """`STATES` by name, on steps that are marked; empty on others."""


@dataclass
class Trace:
    """A run."""

    steps: list[Noted] = field(default_factory=list)
    """In their order."""
    start: State = field(default_factory=dict)
    """Parameters that it began with."""
    batches: list[dict[str, Any]] = field(default_factory=list)
    """As its own loader gave them, uint8 images; empty where they were handed in."""
    per_epoch: list[int] = field(default_factory=list)
    """Batches in each epoch, where a trainer counts them."""
    closed: int | None = None
    """Epoch in which mosaic was closed."""
    judged: State = field(default_factory=dict)
    """Weights and statistics that the evaluation after the last epoch was given."""
    files: dict[str, State] = field(default_factory=dict)
    """Contents of best.pt and last.pt."""


def apart(mine: State, other: State, start: State | None = None) -> float:
    """|mine - other| / |other| over all tensors of the same names, in fp64; of how far they have
    moved from `start`.

    0 where nothing differs, and inf where only `mine` has moved.
    """
    assert mine.keys() == other.keys(), mine.keys() ^ other.keys()
    if mine is other:
        return 0.0
    difference = _norm(mine[name].double() - value.double() for name, value in other.items())
    whole = _norm(
        value.double() - (start[name].double() if start else 0) for name, value in other.items()
    )
    return 0.0 if difference == 0 else difference / whole if whole else math.inf


def _norm(tensors: Iterator[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


def relative(mine: float | tuple[float, ...], other: float | tuple[float, ...]) -> float:
    """Largest |mine - other| / |other| of numbers; 0 where both are nothing."""
    pairs = zip(mine, other, strict=True) if isinstance(mine, tuple) else ((mine, other),)
    return max(0.0 if a == b else abs(a - b) / (abs(b) or math.inf) for a, b in pairs)


def differences(mine: Trace, other: Trace, step: int) -> dict[str, float]:
    """How far step `step` (from 0) of two traces is apart, by what is compared.

    A whole number that differs counts as inf. States are there where both have them.
    """
    left, right = mine.steps[step], other.steps[step]
    found = {key: 0.0 if getattr(left, key) == getattr(right, key) else math.inf for key in EXACT}
    found |= {key: relative(getattr(left, key), getattr(right, key)) for key in NUMBERS}
    for key in STATES:
        if key in left.states and key in right.states:
            found[key] = apart(left.states[key], right.states[key])
    if "weights" in found:
        found["moved"] = apart(left.states["weights"], right.states["weights"], other.start)
    return found


def first_fault(mine: Trace, other: Trace, limit: float, keys: Sequence[str]) -> str:
    """The first step and quantity that is further apart than `limit`; empty where none is."""
    for step in range(min(len(mine.steps), len(other.steps))):
        for key, value in differences(mine, other, step).items():
            if key in keys and value > limit:
                return f"step {step + 1}: {key} is apart by {value:.1e}, more than {limit:.0e}"
    return ""
