"""The search for the nearest training image of every validation image, by their hashes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yolods.data.leaks.hashing import HASH_BITS, PLAIN

MOST_BITS = 32
"""Largest distance of a near-duplicate, of 256 bits. Measured (benchmarks/leaks.md): a copy of
another size, of JPEG quality 20, noisy, brighter or of less contrast is within 14 bits, one of more
contrast, with whites clipped, within 28; one without 2% at each border is 21 apart in the median
and 35 at most; neighbouring frames of a moving camera 8 and 24; the two views of one field in BCCD
are 12 apart. The nearest pair of different images is 74 apart in BCCD, 89 in the demo, and 83 in
generated videos."""

TRAIN_BLOCK, VAL_BLOCK = 4096, 1024
"""Images compared at once; their products take 16 MiB."""


class Pair(NamedTuple):
    """A validation image and the training image that is nearest to it."""

    train: int
    """Row of the training image."""
    val: int
    """Row of the validation image."""
    bits: int
    """Number of bits in which their hashes differ."""


def near_pairs(
    train_hashes: np.ndarray,
    val_hashes: np.ndarray,
    *,
    most_bits: int = MOST_BITS,
    limit: int | None = None,
) -> list[Pair]:
    """Each validation image with its nearest training image, the nearest pairs first.

    The search is exact. Of equally near training images the first is taken.

    Args:
        train_hashes: (n, 4) uint64, from `dhash`; rows that are `PLAIN` match nothing.
        val_hashes: (m, 4) uint64, likewise.
        most_bits: largest distance of a pair.
        limit: maximum number of pairs; None: all.
    """
    train, val = _compared(train_hashes), _compared(val_hashes)
    if not len(train):
        return []
    known, pairs = train_hashes[train], []
    for start in range(0, len(val), VAL_BLOCK):
        rows = val[start : start + VAL_BLOCK]
        nearest, bits = _nearest(known, val_hashes[rows])
        near = np.flatnonzero(bits <= most_bits)
        columns = (train[nearest[near]], rows[near], bits[near])
        pairs += map(Pair._make, zip(*(column.tolist() for column in columns), strict=True))
    return sorted(pairs, key=lambda pair: (pair.bits, pair.val))[:limit]


def _compared(hashes: np.ndarray) -> np.ndarray:
    """Rows whose image is not too plain."""
    return np.flatnonzero((hashes != PLAIN).any(1))


def _nearest(train: np.ndarray, val: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of the nearest training hash for each validation hash, and the distance in bits."""
    # With bits as -1 and 1, a scalar product is HASH_BITS - 2 * distance, exactly. A matrix product
    # is about as fast as numpy 2's bitwise_count, which numpy 1 lacks.
    sought = _signs(val)
    row, best = np.zeros(len(val), np.int64), np.full(len(val), -np.inf, np.float32)
    for start in range(0, len(train), TRAIN_BLOCK):
        products = sought @ _signs(train[start : start + TRAIN_BLOCK]).T
        column = products.argmax(1)
        found = products[np.arange(len(val)), column]
        better = found > best
        row[better], best[better] = start + column[better], found[better]
    return row, ((HASH_BITS - best) / 2).astype(np.int64)


def _signs(hashes: np.ndarray) -> np.ndarray:
    """(n, HASH_BITS) float32: 1 for a set bit, -1 for another."""
    return np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8), axis=1) * np.float32(2) - 1
