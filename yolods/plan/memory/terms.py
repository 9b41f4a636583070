"""The terms of a rank's memory."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank when its device holds most, by what they are for."""

    weights: int = 0
    """Parameters that forward passes read, BatchNorm's statistics, and other buffers."""
    gradients: int = 0
    """Gradients of the parameters, or this rank's share of them."""
    states: int = 0
    """Master weights and the optimizer's states."""
    moving_average: int = 0
    """The moving average of the masters and of BatchNorm's statistics."""
    buckets: int = 0
    """DeepSpeed's buffers for gradients to reduce and for parameters to gather."""
    activations: int = 0
    """What forward passes keep for backward passes, and what a pass needs besides."""
    loss: int = 0
    """What the detection loss adds at that moment."""
    reserve: int = 0
    """What the allocator holds beyond the tensors."""
    host: int = 0
    """Host memory: offloaded states and parameters, and snapshots. Not a part of `device`."""

    @property
    def device(self) -> int:
        """Bytes of the device: the sum of all terms but `host`."""
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "host")
