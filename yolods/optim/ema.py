"""Exponential moving average of the weights, stored as shards of the fp32 masters.

A rank averages only its own shards, so under ZeRO-3 no rank holds a whole copy. To evaluate or save
the average, `exchange` swaps it with the masters in place and updates the model. Swapping back
restores every bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from yolods.device.host_copy import fill
from yolods.system.interrupt import Stopped
from yolods.zero.master_weights import Masters

SWAPPED = 1 << 24
"""Elements that a swap copies at once: 64 MiB."""


class ShardedEma:
    """Moving average of this rank's master shards and of the model's floating-point buffers."""

    def __init__(
        self, masters: Masters, buffers: Sequence[Tensor], *, decay: float, tau: float
    ) -> None:
        """
        Args:
            masters: access to the fp32 weights.
            buffers: running statistics, fp32, whole on every rank.
            decay: limit of the decay (ultralytics: 0.9999).
            tau: updates over which the decay rises to its limit (ultralytics: 2000).
        """
        self._masters, self._buffers = masters, list(buffers)
        self._decay, self._tau = decay, tau
        self.updates = 0
        self._mean_shards = [shard.clone() for shard in masters.shards()]
        self.mean_buffers = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights by 1 - decay x (1 - exp(-updates / tau)).

        Source: ultralytics utils/torch_utils.py, `ModelEMA`.
        """
        self.updates += 1
        share = 1 - self._decay * (1 - math.exp(-self.updates / self._tau))
        torch._foreach_lerp_(self._mean_shards, list(self._masters.shards()), share)
        # A pipeline stage may hold no BatchNorm, and the foreach functions refuse empty lists.
        if self._buffers:
            torch._foreach_lerp_(self.mean_buffers, self._buffers, share)

    @torch.no_grad()
    def _swap(self) -> None:
        live = [*self._masters.shards(), *self._buffers]
        # One part at a time, because under ZeRO a shard may be all that a rank holds.
        for mine, other in zip(live, [*self._mean_shards, *self.mean_buffers], strict=True):
            for part, averaged in zip(_parts(mine), _parts(other), strict=True):
                kept = part.clone()
                part.copy_(averaged)
                averaged.copy_(kept)
        self._masters.publish()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Make the model the average inside the `with` block. A collective.

        The model is restored afterwards, also after a stop on which all ranks agreed. It is not
        restored after any other exception: that may concern one rank only, which would wait here
        for the others instead of reporting its failure.
        """
        self._swap()
        try:
            yield
        except Stopped:
            self._swap()
            raise
        self._swap()

    def state_dict(self) -> dict[str, Any]:
        """This rank's shards of the average, for this rank to save."""
        return {"updates": self.updates, "shards": self._mean_shards, "buffers": self.mean_buffers}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what this rank saved.

        Raises:
            ValueError: the shards have other sizes (another layout or world size).
        """
        for mine, saved in (("_mean_shards", "shards"), ("mean_buffers", "buffers")):
            targets, sources = getattr(self, mine), state[saved]
            if [tensor.numel() for tensor in targets] != [tensor.numel() for tensor in sources]:
                raise ValueError(
                    f"the {saved} of the saved average do not have this layout's sizes"
                )
            fill(
                targets,
                [source.view_as(target) for target, source in zip(targets, sources, strict=True)],
            )
        self.updates = int(state["updates"])


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Views of bounded size of a flat shard; a tensor with dimensions is one layer's weight."""
    return tensor.split(SWAPPED) if tensor.ndim == 1 else (tensor,)
