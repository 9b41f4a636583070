"""What a model returns to after a bad step: running statistics, and a snapshot in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yolods.device.host_copy import host_copy


class Snapshots:
    """Copies of the training state, so that bad steps leave nothing behind. Local."""

    def __init__(
        self,
        statistics: Callable[[], list[Tensor]],
        moving: Callable[[], dict[str, Any]],
        *,
        every: int,
        restores: bool,
    ) -> None:
        """
        Args:
            statistics: returns the live model's running statistics.
            moving: returns everything that a step changes on this rank.
            every: applied steps between two snapshots; 0 for none.
            restores: whether a step that is not applied leaves nothing behind; if not, nothing is
                copied.
        """
        self._statistics, self._moving = statistics, moving
        self._every, self._restores = every, restores
        self._since = 0
        self.statistics_before = [buffer.clone() for buffer in statistics()]
        """Running statistics at the start of the step."""
        self.snapshot: dict[str, Any] | None = None
        """Copy of what `moving` returned, in host memory."""

    @property
    def takes_snapshots(self) -> bool:
        """Whether snapshots are taken at all."""
        return self._every > 0 and self._restores

    def keep_statistics(self) -> None:
        """Save the running statistics before the forward passes.

        The passes of a step that is not applied move them too, perhaps to nan, which no later step
        could correct.
        """
        if self.statistics_before and self._restores:
            torch._foreach_copy_(self.statistics_before, self._statistics())

    def restore_statistics(self) -> None:
        """Restore the running statistics."""
        if self.statistics_before and self._restores:
            torch._foreach_copy_(self._statistics(), self.statistics_before)

    def remember(self) -> None:
        """Take a snapshot if one is due.

        Call it after a good verdict and before the weights move.
        """
        if not self.takes_snapshots:
            return
        if self.snapshot is None or self._since >= self._every:
            self.take()
        self._since += 1

    def take(self) -> None:
        """Copy everything that trains to host memory, for a roll-back."""
        self.snapshot, self._since = host_copy(self._moving()), 0

    def state(self) -> dict[str, Any]:
        """The snapshot, for a checkpoint.

        The state in the checkpoint cannot replace the snapshot, because no step has yet shown its
        weights to be good. A resumed run must also roll back to the same weights as an
        uninterrupted one.
        """
        return {"snapshot": self.snapshot, "since_snapshot": self._since}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, after the engine has restored the rest."""
        # Into new memory: what was read may be mapped from a file that a later save removes.
        self.snapshot, self._since = (
            host_copy(state.get("snapshot")),
            state.get("since_snapshot", 0),
        )
        # A checkpoint of another layout contains no snapshot, so the resumed weights serve as one.
        if self.snapshot is None and self.takes_snapshots:
            self.take()
