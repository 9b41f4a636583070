"""Where a model goes back to: the running statistics before the step, and a snapshot some steps ago."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yolods.device.host_copy import host_copy


class Snapshots:
    """Copies of what trains, kept against steps that must leave nothing behind. Local."""

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
            statistics: the live model's running statistics.
            moving: everything that a step changes on this rank.
            every: applied steps from one snapshot to the next; 0 for none.
            restores: whether a step that is not applied leaves nothing behind; otherwise nothing is kept.
        """
        self._statistics, self._moving = statistics, moving
        self._every, self._restores = every, restores
        self._since = 0
        self.statistics_before = [buffer.clone() for buffer in statistics()]
        """As they were when the step began."""
        self.snapshot: dict[str, Any] | None = None
        """What `moving` gave, in host memory."""

    @property
    def takes_snapshots(self) -> bool:
        """Whether there are to be any."""
        return self._every > 0 and self._restores

    def keep_statistics(self) -> None:
        """The forward passes of a step that is not applied move the running statistics, perhaps to nan, for good."""
        if self.statistics_before and self._restores:
            torch._foreach_copy_(self.statistics_before, self._statistics())

    def restore_statistics(self) -> None:
        """Put them back."""
        if self.statistics_before and self._restores:
            torch._foreach_copy_(self._statistics(), self.statistics_before)

    def remember(self) -> None:
        """Take a snapshot where one is due: of weights that this very step has shown to be good, before they move."""
        if not self.takes_snapshots:
            return
        if self.snapshot is None or self._since >= self._every:
            self.take()
        self._since += 1

    def take(self) -> None:
        """Keep a copy of everything that trains, in host memory, for a roll-back."""
        self.snapshot, self._since = host_copy(self._moving()), 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the state that is saved beside it would not do in the snapshot's place. Its weights have
        not been shown to be good, and the run that goes on and the one that resumes have to go back to the same."""
        return {"snapshot": self.snapshot, "since_snapshot": self._since}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, when the engine has taken over the rest."""
        # In memory of its own: what was read may be mapped from a file, which a later save removes.
        self.snapshot, self._since = host_copy(state.get("snapshot")), state.get("since_snapshot", 0)
        if self.snapshot is None and self.takes_snapshots:  # another layout wrote it: these weights have to do
            self.take()
