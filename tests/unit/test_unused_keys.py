"""Keys that change nothing are told once for each reason; those that ask for nothing are not told
at all."""

from __future__ import annotations

from typing import Any

import pytest

from yolods.config.deepspeed.limits import JsonSettings
from yolods.config.deepspeed.unused_keys import unused_keys


def told(sound: dict[str, Any], **decided: Any) -> tuple[str, ...]:
    zero = sound.get("zero_optimization", {})
    usual = {
        **{
            "zero_stage": zero.get("stage", 0),
            "precision": "fp32",
            "autocast": None,
            "pipelined": False,
        },
        **{
            "offload": {"optimizer": False, "param": False},
            "world_size": 2,
            "device": "cpu",
            "stock": False,
        },
        **{"optimizer": "auto", "arguments": {}},
    }
    return unused_keys(JsonSettings(sound=sound, **{**usual, **decided}), "ds.json")


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


def test_keys_of_one_reason_share_a_line():
    (line,) = told(zero(1, stage3_max_reuse_distance=5, sub_group_size=1000))
    assert line == (
        'ds.json: no effect: "zero_optimization".stage3_max_reuse_distance, '
        '"zero_optimization".sub_group_size (only ZeRO stage 3 reads it, not 1)'
    )


@pytest.mark.parametrize(
    ("stage", "key", "readers"),
    [
        (0, "contiguous_gradients", None),
        (0, "reduce_scatter", "stage 1, 2 and 3 read it"),
        (0, "overlap_comm", None),
        (0, "reduce_bucket_size", None),
        (3, "allgather_partitions", "stage 1 and 2 read it"),
        (2, "stage3_prefetch_bucket_size", "stage 3 reads it"),
        (3, "stage3_prefetch_bucket_size", None),
    ],
)
def test_who_reads_a_key_of_another_stage_is_named(stage, key, readers):
    off = key in ("allgather_partitions", "reduce_scatter")
    value = False if off else 7 if "size" in key else True
    lines = told(zero(stage, **{key: value}))
    assert lines == () if readers is None else readers in lines[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("overlap_comm", False),  # off is what a missing key means
        ("contiguous_gradients", True),  # on is what a missing key means
        ("zero_hpz_partition_size", 1),
        ("leaf_module", {}),
        ("reduce_bucket_size", None),
    ],
)
def test_a_value_that_repeats_what_a_missing_key_does_asks_for_nothing(key, value):
    assert told(zero(0, **{key: value})) == ()


def test_one_is_a_size_and_not_an_on():
    (line,) = told(zero(0, allgather_bucket_size=1))
    assert "allgather_bucket_size" in line


def test_a_block_that_is_off_or_empty_is_not_told():
    assert told({"aio": {}, "compile": False, "checkpoint": None}) == ()
    (line,) = told({"aio": {"block_size": 1}})
    assert (
        line
        == 'ds.json: no effect: "aio" (it is for states on NVMe, which yolods does not support)'
    )


def test_a_pipeline_reduces_once_whatever_is_asked_of_overlap():
    assert told(zero(1, overlap_comm=True)) == ()
    for changed in (zero(1, overlap_comm=True), zero(0, reduce_bucket_size=7)):
        (line,) = told(changed, pipelined=True)
        assert "a pipeline's stage reduces its gradients once" in line


def test_compression_replaces_the_reduction_and_needs_two_ranks_and_a_kind():
    (line,) = told(zero(1, reduce_bucket_size=5, reduce_scatter=False), compressed=True)
    assert line == (
        'ds.json: no effect: "zero_optimization".reduce_bucket_size, '
        '"zero_optimization".reduce_scatter (compression replaces DeepSpeed\'s reduction of '
        "gradients)"
    )
    (line,) = told(zero(0), compressed=True, world_size=1)
    assert line == 'ds.json: no effect: "yolods".compression (one rank sends no gradients)'
    block = {"yolods": {"compression": {"rank": 4, "min_saving": 3}}}
    (line,) = told({**zero(0), **block})
    assert line == (
        'ds.json: no effect: "yolods".compression.rank, "yolods".compression.min_saving '
        '("kind" is "none"; set it to "powersgd")'
    )
    assert told({**zero(0), **block}, compressed=True) == ()
