"""The tests' own `on_ranks`: a rank that fails or hangs costs neither the other tests nor the
reason."""

from __future__ import annotations

import time

import pytest

from tests.ranks import on_ranks
from yolods.distributed.world import Ranks

pytestmark = pytest.mark.slow


def fail_on_one(ranks: Ranks) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    if ranks.rank == 1:
        raise ValueError("rank 1 knows why")
    ranks.barrier()


def wait_for_nobody(ranks: Ranks) -> None:
    """Rank 0 waits inside C++ for a rank that never comes."""
    if ranks.rank == 0:
        ranks.barrier()
    time.sleep(100)


def test_the_rank_that_failed_is_named_and_the_others_are_not_waited_for() -> None:
    with pytest.raises(AssertionError) as caught:
        on_ranks("tests.dist.test_ranks:fail_on_one", (2,), timeout=60)
    text = str(caught.value)
    assert "rank 1 of 2 failed" in text and "ValueError: rank 1 knows why" in text
    assert "time ran out" not in text


def test_ranks_that_hang_show_their_stacks() -> None:
    with pytest.raises(AssertionError) as caught:
        on_ranks("tests.dist.test_ranks:wait_for_nobody", (2,), timeout=4)
    text = str(caught.value)
    assert "time ran out for rank 0, 1 of 2" in text
    assert text.count("in wait_for_nobody") == 2 and "in barrier" in text
