"""How a JSON says that gradients are reduced."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_deepspeed_pipeline import configured
from yolods.config.reducing import ReductionConfig, read_reduction


@pytest.mark.parametrize(
    ("zero", "owned", "overlapped"),
    [
        ({}, True, True),
        ({"overlap_comm": True, "reduce_scatter": True}, True, True),
        ({"overlap_comm": False}, True, False),
        ({"use_multi_rank_bucket_allreduce": True}, False, True),
        ({"use_multi_rank_bucket_allreduce": False}, False, True),
        ({"reduce_scatter": False}, False, True),
    ],
)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_the_json_asks_for_wins(
    zero: dict[str, Any], owned: bool, overlapped: bool, stage: int
) -> None:
    found = read_reduction(zero, stage, pipelined=False)
    assert found == ReductionConfig(
        owned=owned and stage in (1, 2), overlapped=overlapped, once="auto"
    )


def test_a_stage_of_a_pipeline_reduces_after_its_passes() -> None:
    found = read_reduction({"overlap_comm": True}, 1, pipelined=True)
    assert found == ReductionConfig(owned=True, overlapped=False, once="auto")


@pytest.mark.parametrize("stage", [0, 1])
def test_compression_reduces_by_itself(tmp_path: Any, stage: int) -> None:
    content = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "yolods": {"compression": {"kind": "powersgd"}},
    }
    found = configured(tmp_path, content, 2).deepspeed.reduction
    assert found == ReductionConfig(owned=False, overlapped=False, once="auto")


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 1, "overlap_comm": True}, False),  # ours needs none of DeepSpeed's streams
        ({"stage": 2}, False),
        ({"stage": 2, "overlap_comm": True, "use_multi_rank_bucket_allreduce": True}, True),
        ({"stage": 3, "overlap_comm": True}, True),
    ],
)
def test_deepspeed_overlaps_only_its_own_reduction(
    tmp_path: Any, zero: dict[str, Any], expected: bool
) -> None:
    content = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": zero}
    resolved = configured(tmp_path, content, 2).deepspeed.for_initialize()
    assert resolved["zero_optimization"]["overlap_comm"] is expected


def test_the_json_sizes_buckets_where_it_says_so(tmp_path: Any) -> None:
    content: dict[str, Any] = {"train_micro_batch_size_per_gpu": 2}
    for zero, expected in (({}, 9), ({"stage": 1}, 9), ({"stage": 1, "reduce_bucket_size": 7}, 7)):
        config = configured(tmp_path, {**content, "zero_optimization": zero}, 2)
        assert config.for_initialize(9)["zero_optimization"]["reduce_bucket_size"] == expected
