"""benchmarks/large_models_io.py: what it measures, its table, and when it fails."""

from __future__ import annotations

import numpy as np

from benchmarks.large_models_io import limit, missed, table
from benchmarks.large_models_io_ranks import MIB, most_memory

SEEN = [
    {"phases": {"last.pt": 30.0, "resume": taken}, "shard": 90.0, "leaf": 10.0, "whole": 60.0}
    for taken in (20.0, 261.0)
]


def test_the_most_memory_is_noticed_and_what_was_held_before_is_not():
    before = np.ones(50 * MIB, dtype=np.uint8)
    taken = most_memory(lambda: np.ones(80 * MIB, dtype=np.uint8).sum())
    assert 79 < taken < 100
    assert most_memory(lambda: None) < 10 and before.sum() == 50 * MIB


def test_a_phase_that_took_more_than_the_largest_leaf_and_the_allowance_is_missed():
    assert limit(SEEN[0]) == 260
    assert missed(SEEN) == ["resume"] and missed(SEEN[:1]) == []
    assert table(SEEN)[-1] == "| resume | 20 | 261 |"
    assert "allowed: 260 MiB" in table(SEEN)[0]
