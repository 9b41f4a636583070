"""Decoded images that a process keeps, so that it does not decode them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Decoded(NamedTuple):
    """An image in training size."""

    pixels: np.ndarray
    """(h, w, channels) uint8, colours as BGR; read-only once it is kept."""
    original: tuple[int, int]
    """Height and width before it was scaled."""


class DecodedImages:
    """The first images that fit into a limit, for good, and those of one block for a while."""

    def __init__(self, decode: Callable[[int], Decoded], limit: int) -> None:
        """
        Args:
            decode: reads the image at an index and decodes it.
            limit: bytes of the images that are kept for good.
        """
        self._decode, self.limit = decode, limit
        self.kept: dict[int, Decoded] = {}
        self.kept_bytes = 0
        self._block: Sequence[int] = ()
        self._of_block: dict[int, Decoded] = {}

    def begin(self, block: Sequence[int]) -> None:
        """Keep the images of this block from now on, and forget those of the one before."""
        if block != self._block:
            self._block = block
            old = self._of_block
            self._of_block = {i: old[i] for i in block if i in old}

    def __getitem__(self, i: int) -> Decoded:
        """The image at index `i`. What `decode` raises is passed on."""
        found = self.kept.get(i) or self._of_block.get(i)
        if found is None:
            found = self._decode(i)
            # None is evicted for another, which under random access would not pay.
            if not self.keep(i, found, self.limit) and i in self._block:
                self._of_block[i] = _read_only(found)
        return found

    def keep(self, i: int, decoded: Decoded, limit: float) -> bool:
        """Whether the image fits into `limit` bytes together with all others, and is kept now."""
        if self.kept_bytes + decoded.pixels.nbytes > limit:
            return False
        self.kept[i] = _read_only(decoded)
        self.kept_bytes += decoded.pixels.nbytes
        return True


def _read_only(decoded: Decoded) -> Decoded:
    """The image itself, which nobody can change by accident from now on."""
    decoded.pixels.flags.writeable = False
    return decoded
