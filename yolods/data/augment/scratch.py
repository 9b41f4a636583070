"""Arrays that a process fills anew for every sample."""

from __future__ import annotations

import numpy as np


class Scratch:
    """Arrays by name, each kept for the next sample.

    The system gives new memory page by page, which for arrays of this size takes longer than to
    fill them.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, *shape: int) -> np.ndarray:
        """A uint8 array; its content is what the last user of the name has left."""
        kept = self._arrays.get(name)
        if kept is None or kept.shape != shape:
            kept = self._arrays[name] = np.empty(shape, np.uint8)
        return kept
