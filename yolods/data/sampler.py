"""The endless training stream: pure functions from positions to samples and their random seeds.

Position g of the stream is in epoch g // n and shows image shown_at(seed, epoch, n, g % n).
Batch k consists of the positions [k * batch, (k + 1) * batch); data-parallel rank r of R takes the
r-th of R equal slices:

    position   0 1 2 3 4 | 5 6 7 8 9 | 10 ...      n = 5: a batch may cross into the next epoch
    batch      0 0 0 0 1   1 1 1 2 2   2           batch = 4
    rank       0 0 1 1 0   0 1 1 0 0   1           2 ranks

A stream may be divided into blocks, whose images are mixed with no others. Blocks begin at
multiples of their length. What an epoch's ends leave over belongs to the block beside it:

    position   0 1 2 3 4 5 6 | 7 8 9 10 11 12 13 | 14 ...
    block      0 0 0 1 1 1 1   2 2 2  2  2  2  2    3      n = 7, blocks of 3
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch

LISTED = 1 << 20
"""Images of a set up to which the order of an epoch is a list."""
TURNS = 6
"""Rounds of the network that orders a larger set. Four make a pseudorandom permutation of a good
round function (Luby and Rackoff, 1988); two more for one that is only a quick hash."""
BLOCK_LENGTH = 8
"""Length of a block in samples. A loader process decodes each image of a block once if it makes the
whole block, and it makes whole micro-batches. These are mostly multiples of 8, so that each block
lies in one of them; longer blocks would often be divided between processes."""


class SampleId(NamedTuple):
    """Address of one augmented training sample."""

    epoch: int
    """Epoch, from 0; it determines the augmentation together with the seed and the index."""
    index: int
    """Index of the image in the data set."""
    block: tuple[int, ...] = ()
    """Indices of the images that it may be mixed with, itself included; empty: all of the set."""


def keyed_seed(*key: int | str) -> int:
    """A 64-bit seed that depends on every part of `key` and is equal on every platform."""
    text = ":".join(str(part) for part in key)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _legacy_seed(seed: int) -> list[int]:
    """A 64-bit seed as two 32-bit words for numpy's RandomState."""
    return [seed & 0xFFFFFFFF, seed >> 32]


def seed_generators(*key: int | str) -> None:
    """Seed the global generators of Python, numpy and torch's CPU, each with a prefix of its own.

    All three are Mersenne twisters, so equal seeds give equal streams. Python and numpy once shared
    a seed, and in every mosaic the hue gain, drawn by numpy, followed from the first partner, drawn
    by Python. Each single distribution was right; only the dependence between two draws shows such
    a fault.
    """
    random.seed(keyed_seed("python", *key))
    np.random.seed(_legacy_seed(keyed_seed("numpy", *key)))
    # torch's seeds are below 2^63.
    torch.default_generator.manual_seed(keyed_seed("torch", *key) >> 1)


@contextmanager
def restored_generators() -> Iterator[None]:
    """Restore the global generators at the end of this context, in which they may be seeded."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which an epoch shows the n images: read-only int64 array (n,).

    It uses RandomState, whose streams numpy promises never to change, so that a run resumes
    identically under a later numpy.
    """
    order = np.random.RandomState(_legacy_seed(keyed_seed("order", seed, epoch))).permutation(n)
    order.flags.writeable = False
    return order


def shown_at(seed: int, epoch: int, n: int, places: np.ndarray) -> np.ndarray:
    """The images that an epoch shows at `places` of its order.

    Up to `LISTED` images it is `permutation`. The order of more is computed where it is asked for,
    by a Feistel network over the next power of four, walked until it is below n (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002): a list of ten million numbers would take 80 MB
    per process and half a second per epoch.

    Args:
        places: (k,) int64 in [0, n).
    """
    if n <= LISTED:
        return permutation(seed, epoch, n)[places]
    half = (int(n - 1).bit_length() + 1) // 2
    keys = [keyed_seed("order", seed, epoch, turn) for turn in range(TURNS)]
    shown = _exchanged(places, half, keys)
    while len(above := np.flatnonzero(shown >= n)):
        shown[above] = _exchanged(shown[above], half, keys)
    return shown


def _exchanged(numbers: np.ndarray, half: int, keys: Sequence[int]) -> np.ndarray:
    """A permutation of the numbers of 2 * `half` bits, as int64."""
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = numbers.astype(np.uint64) >> shift, numbers.astype(np.uint64) & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ np.uint64(key)) & mask)
    return (left << shift | right).astype(np.int64)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A hash of 64-bit numbers: the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ numbers >> np.uint64(shift)) * np.uint64(factor)
    return numbers ^ numbers >> np.uint64(31)


@dataclass(frozen=True)
class Stream:
    """The endless sequence of training samples."""

    n: int
    """Images in the training set."""
    seed: int
    """Seed of the run."""
    batch: int
    """Images per forward pass over all data-parallel ranks."""
    block: int = 0
    """Length of the blocks in samples; 0: samples are mixed with all images of the set."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1:
            raise ValueError(f"a stream needs images and a batch: n {self.n}, batch {self.batch}")

    def sample_ids(self, first_position: int, count: int) -> list[SampleId]:
        """The ids of `count` samples from `first_position` on."""
        epochs, places = np.divmod(np.arange(first_position, first_position + count), self.n)
        ids = []
        for epoch in np.unique(epochs).tolist():
            mine = places[epochs == epoch]
            shown = shown_at(self.seed, epoch, self.n, mine).tolist()
            ids += map(SampleId, [epoch] * len(mine), shown, self._blocks_of(epoch, mine.tolist()))
        return ids

    def _blocks_of(self, epoch: int, places: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """For each place of an epoch the images of its block; () if there are no blocks."""
        bounds, block = None, ()
        for place in places:
            found = self._block_at(epoch * self.n + place) if self.block else None
            # Neighbouring places mostly share a block, whose images are computed once.
            if found != bounds:
                first, end = (each - epoch * self.n for each in found)
                shown = shown_at(self.seed, epoch, self.n, np.arange(first, end))
                bounds, block = found, tuple(shown.tolist())
            yield block

    def _block_at(self, position: int) -> tuple[int, int]:
        """First position of the block at `position`, and the end of the block."""
        start = position // self.n * self.n
        end = start + self.n
        # Blocks begin at multiples of their length, and at least that far from the epoch's ends.
        first = -(-start // self.block) * self.block + self.block
        last = (end // self.block) * self.block - self.block
        before = min(position // self.block * self.block, last)
        after = max(position // self.block * self.block + self.block, first)
        return before if before >= first else start, after if after <= last else end

    def batch_ids(self, k: int, dp_rank: int = 0, dp_size: int = 1) -> list[SampleId]:
        """The batch / dp_size samples of batch k for `dp_rank`.

        Raises:
            ValueError: the batch is not divisible by dp_size.
        """
        if self.batch % dp_size:
            raise ValueError(f"batch {self.batch} does not divide by {dp_size} ranks")
        micro = self.batch // dp_size
        return self.sample_ids(k * self.batch + dp_rank * micro, micro)
