"""yolods.data.sampler: the stream is a pure function, without repeats or gaps, however it is dealt
out."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from yolods.data import sampler
from yolods.data.sampler import (
    SampleId,
    Stream,
    keyed_seed,
    permutation,
    restored_generators,
    seed_generators,
    shown_at,
)


def test_literal_tables():
    """Streams are a promise to runs that will be resumed: a change here breaks them."""
    assert permutation(0, 0, 7).tolist() == [3, 4, 6, 1, 5, 2, 0]
    assert permutation(0, 1, 7).tolist() == [6, 5, 0, 4, 1, 3, 2]
    assert permutation(3, 0, 7).tolist() == [1, 6, 5, 3, 2, 0, 4]
    assert keyed_seed("sample", 0, 1, 2) == 12662170671434128924


def test_positions_walk_through_the_epochs():
    order = [permutation(5, epoch, 3).tolist() for epoch in range(3)]
    expected = [SampleId(e, i) for e in range(3) for i in order[e]]
    assert Stream(3, 5, 4).sample_ids(0, 9) == expected
    assert Stream(3, 5, 4).sample_ids(4, 3) == expected[4:7]


@pytest.mark.parametrize("n", [1, 2, 5, 12, 13, 97])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_together_see_what_one_rank_sees(n, ranks):
    stream = Stream(n, seed=1, batch=12)
    for k in range(5):
        dealt = [sample for rank in range(ranks) for sample in stream.batch_ids(k, rank, ranks)]
        assert dealt == stream.batch_ids(k)


@pytest.mark.parametrize("n", [1, 5, 13, 97])
def test_no_repeat_and_no_gap_inside_an_epoch(n):
    stream = Stream(n, seed=2, batch=8)
    batches = -(-4 * n // 8)
    seen = [sample for k in range(batches) for sample in stream.batch_ids(k)][: 4 * n]
    for epoch in range(4):
        assert sorted(s.index for s in seen if s.epoch == epoch) == list(range(n))


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@pytest.mark.process
def test_another_process_gives_the_same():
    code = (
        "from yolods.data.sampler import *; print(Stream(31, 9, 8).batch_ids(6, 1, 2), "
        "keyed_seed('a', 1))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert (
        printed[0] == printed[1] == f"{Stream(31, 9, 8).batch_ids(6, 1, 2)} {keyed_seed('a', 1)}\n"
    )


def test_an_order_cannot_be_changed_by_its_users():
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 0, 4)[0] = 1


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch 8 does not divide by 3 ranks"):
        Stream(10, 0, 8).batch_ids(0, 0, 3)
    with pytest.raises(ValueError, match="n 0"):
        Stream(0, 0, 8)


@pytest.fixture
def computed(monkeypatch):
    """The order of every set is computed, as that of a large one."""
    monkeypatch.setattr(sampler, "LISTED", 0)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 100, 1023, 5000])
def test_a_computed_order_shows_every_image_once(computed, n):
    orders = [shown_at(3, epoch, n, np.arange(n)) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(n)) for order in orders)
    assert n < 16 or not np.array_equal(orders[0], orders[1])
    some = np.array([n // 2, 0])
    assert shown_at(3, 1, n, some).tolist() == orders[1][some].tolist()


def test_a_computed_order_is_as_even_as_a_drawn_one(computed):
    """Places of an image over epochs, and steps between neighbours: chi-square of 16 classes each,
    whose 99.99% quantile at 15 degrees of freedom is 44."""
    n, epochs = 1000, 400
    orders = np.stack([shown_at(0, epoch, n, np.arange(n)) for epoch in range(epochs)])
    for values in (orders[:, 0], orders[:, 1] - orders[:, 0], orders[:, 500] - orders[:, 2]):
        counts = np.bincount(values % n * 16 // n, minlength=16)
        assert ((counts - epochs / 16) ** 2 / (epochs / 16)).sum() < 44
    follow = np.corrcoef(orders[:, :-1].reshape(-1), orders[:, 1:].reshape(-1))[0, 1]
    assert abs(follow) < 0.01


def test_a_large_set_is_ordered_without_a_list():
    n = 10_000_000
    stream = Stream(n, 0, 64)
    ids = stream.sample_ids(2 * n + n // 2, 64)
    assert {each.epoch for each in ids} == {2} and len({each.index for each in ids}) == 64
    assert sampler.permutation.cache_info().currsize <= 4
    assert [each.epoch for each in stream.sample_ids(n - 2, 4)] == [0, 0, 1, 1]
    # A promise to runs that will be resumed, as the tables above.
    assert shown_at(0, 0, n, np.arange(3)).tolist() == [64682, 5118734, 9433319]


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 23, 24, 61])
def test_blocks_divide_an_epoch_and_lie_on_multiples_of_their_length(n, block):
    ids = Stream(n, 3, 4, block).sample_ids(0, 5 * n)
    for epoch in range(5):
        order = permutation(3, epoch, n).tolist()
        mine = ids[epoch * n : (epoch + 1) * n]
        assert [each.index for each in mine] == order
        assert all(each.index in each.block for each in mine)
        blocks = list(dict.fromkeys(each.block for each in mine))
        assert [index for each in blocks for index in each] == order
        starts = [epoch * n + order.index(each[0]) for each in blocks]
        assert all(start % block == 0 for start in starts[1:])
        assert all(min(block, n) <= len(each) < 3 * block for each in blocks)
        assert all(len(each) == block for each in blocks[1:-1])


def test_blocks_of_a_stream_literal():
    """As streams are, they are a promise to runs that will be resumed."""
    found = [each.block for each in Stream(7, 0, 4, 3).sample_ids(0, 15)]
    first, second = permutation(0, 0, 7).tolist(), permutation(0, 1, 7).tolist()
    assert found[:7] == [tuple(first[:3])] * 3 + [tuple(first[3:])] * 4
    assert found[7:14] == [tuple(second)] * 7
    assert found[14] == tuple(permutation(0, 2, 7)[:4].tolist())


def test_without_blocks_a_sample_has_none():
    assert {each.block for each in Stream(7, 0, 4).sample_ids(0, 20)} == {()}


def test_global_generators_are_restored_and_seeded_by_all_parts_of_a_key():
    def drawn() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with restored_generators():
        seed_generators("sample", 0, 1, 2)
        inside = drawn()
        seed_generators("sample", 0, 1, 2)
        assert drawn() == inside
        seed_generators("sample", 0, 1, 3)
        assert not set(drawn()) & set(inside)
    after = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert after == drawn()
