"""Which memory claims to be the device's, or pinned: a claim hangs on a tensor's storage, so that
all its views share it, and ends with the storage.

All functions have to be called where torch does not ask a function mode, or they would ask
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Memory = Literal["device", "pinned"]
_BLOCK = 512
"""Bytes that CUDA's allocator rounds up to; torch 2.13, c10/cuda/CUDACachingAllocator.h,
kMinBlockSize."""


@dataclass
class Ledger:
    """Bytes of device memory that are claimed."""

    now: int = 0
    peak: int = 0

    def add(self, count: int) -> None:
        """Memory is taken, or given back where `count` is less than 0."""
        self.now += count
        self.peak = max(self.peak, self.now)

    def reset_peak(self) -> None:
        """The peak is counted from what is claimed now."""
        self.peak = self.now


@dataclass(eq=False)
class Claim:
    """One storage that is not ordinary host memory."""

    memory: Memory
    bytes: int
    ledger: Ledger
    uses: dict[Any, Any] = field(default_factory=dict)
    """Who has read and written it: of `races`."""

    def __post_init__(self) -> None:
        if self.memory == "device":
            self.ledger.add(self.bytes)

    def __del__(self) -> None:
        if self.memory == "device":
            self.ledger.add(-self.bytes)


def claim(tensor: Tensor, memory: Memory, ledger: Ledger) -> Tensor:
    """Let a tensor's storage be the device's, or pinned; returns the tensor."""
    storage = tensor.untyped_storage()
    storage.claim = Claim(memory, -(-storage.nbytes() // _BLOCK) * _BLOCK, ledger)
    return tensor


def claim_of(tensor: Tensor) -> Claim | None:
    """The claim on a tensor's storage; None for ordinary host memory."""
    return getattr(tensor.untyped_storage(), "claim", None)


def memory_of(tensor: Tensor) -> Memory | None:
    """Where a tensor claims to be; None for ordinary host memory."""
    held = claim_of(tensor)
    return None if held is None else held.memory


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor claims to be on the device."""
    return memory_of(tensor) == "device"


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Tensors among values, and in lists and tuples of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
