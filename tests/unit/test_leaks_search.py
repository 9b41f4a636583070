"""yolods.data.leaks.search: for every validation image the nearest training image, exactly."""

import numpy as np
import pytest

from yolods.data.leaks import search
from yolods.data.leaks.hashing import PLAIN
from yolods.data.leaks.search import Pair, near_pairs


def random_hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64, (count, 4), dtype=np.uint64)


def flipped(value: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    """The hash with this many bits changed."""
    every = np.unpackbits(value.view(np.uint8))
    every[np.random.default_rng(seed).permutation(256)[:bits]] ^= 1
    return np.packbits(every).view(np.uint64)


def counted(one: np.ndarray, other: np.ndarray) -> int:
    return sum((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    """50 training and 23 validation hashes; some of either are too plain, some are near."""
    train, val = random_hashes(50, 1), random_hashes(23, 2)
    for row in range(0, 20, 2):
        val[row] = flipped(train[49 - row], 3 * row, seed=row)
    train[[4, 30]] = val[[5, 8]] = PLAIN
    return train, val


@pytest.mark.parametrize(("train_block", "val_block"), [(4096, 1024), (7, 5), (50, 23), (1, 1)])
def test_it_is_exact_in_blocks_of_any_size(sets, monkeypatch, train_block, val_block):
    monkeypatch.setattr(search, "TRAIN_BLOCK", train_block)
    monkeypatch.setattr(search, "VAL_BLOCK", val_block)
    train, val = sets
    expected = []
    for row in range(23):
        near = [(counted(train[k], val[row]), k) for k in range(50) if train[k].any()]
        bits, k = min(near)
        if val[row].any():
            expected.append(Pair(k, row, bits))
    expected.sort(key=lambda pair: (pair.bits, pair.val))
    assert near_pairs(train, val, most_bits=256) == expected
    assert near_pairs(train, val) == [pair for pair in expected if pair.bits <= 32]
    assert near_pairs(train, val, most_bits=20, limit=3) == expected[:3]
    assert [pair.bits for pair in expected[:4]] == [0, 6, 12, 18]


def test_the_threshold_is_the_last_that_counts():
    train = random_hashes(10, 3)
    val = np.array([flipped(train[2], bits) for bits in (33, 32, 31)])
    assert near_pairs(train, val) == [Pair(2, 2, 31), Pair(2, 1, 32)]


def test_of_equals_the_first_is_taken():
    train = random_hashes(6, 4)[[0, 1, 2, 1, 1]]
    assert near_pairs(train, train[[4, 1]]) == [Pair(1, 0, 0), Pair(1, 1, 0)]


def test_plain_images_match_nothing_not_even_each_other():
    plain, one = np.tile(PLAIN, (3, 1)), random_hashes(1, 5)
    assert near_pairs(plain, plain) == []
    assert near_pairs(np.vstack([plain, one]), np.vstack([plain, one])) == [Pair(3, 3, 0)]


def test_an_empty_split_has_no_pairs():
    none, some = np.zeros((0, 4), np.uint64), random_hashes(3, 6)
    assert near_pairs(none, some) == near_pairs(some, none) == near_pairs(none, none) == []


def test_opposite_hashes_are_256_bits_apart():
    one = random_hashes(1, 7)
    assert near_pairs(one, ~one, most_bits=256) == [Pair(0, 0, 256)]
