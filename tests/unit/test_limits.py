"""What DeepSpeed would take and die of: each rule with the one thing that breaks it, and beside it
what does not."""

from __future__ import annotations

import pytest

from yolods.config.deepspeed.limits import JsonSettings, check_limits
from yolods.errors import Faults

SOUND = {
    "sound": {},
    "zero_stage": 1,
    "precision": "fp32",
    "autocast": None,
    "offload": {"optimizer": False, "param": False},
    "pipelined": False,
    "world_size": 4,
    "device": "cuda",
    "stock": False,
    "optimizer": "AdamW",
    "arguments": {},
}
OFFLOADED = {"optimizer": True, "param": False}


def zero(**block) -> dict:
    return {"zero_optimization": block}


def faults_of(changes: dict) -> list[str]:
    faults = Faults()
    check_limits(JsonSettings(**(SOUND | changes)), "ds", faults)
    return list(faults)


def test_a_plain_layout_has_no_fault():
    for stage in range(4):
        assert faults_of({"zero_stage": stage}) == []


CASES = [
    (
        {"compressed": True, "zero_stage": 2},
        {"compressed": True, "zero_stage": 1},
        '"yolods".compression with ZeRO stage 2: from stage 2 on, DeepSpeed divides gradients',
    ),
    (
        {"compressed": True, "pipelined": True},
        {"compressed": True, "zero_stage": 0},
        '"yolods".compression with "pipeline" is not supported',
    ),
    (
        {"compressed": True, "offload": OFFLOADED},
        {"offload": OFFLOADED},
        '"yolods".compression with "offload_optimizer" is not supported',
    ),
    (
        {"compressed": True, "stock": True},
        {"stock": True},
        "decides only during its step whether the memory of unsent gradients may be kept; keep",
    ),
    (
        {
            "compressed": True,
            "precision": "fp16",
            "sound": {"data_types": {"grad_accum_dtype": "fp32"}},
        },
        {"compressed": True, "precision": "fp16"},
        '"fp16" and "data_types".grad_accum_dtype fp32: DeepSpeed adds such gradients up',
    ),
    (
        {
            "compressed": True,
            "sound": {"communication_data_type": "bf16", **zero(overlap_comm=True)},
        },
        {"compressed": True, "sound": zero(overlap_comm=False)},
        'remove "zero_optimization".overlap_comm, communication_data_type',
    ),
    (
        {"compressed": True, "sound": {"gradient_predivide_factor": 2.0}},
        {"sound": {"gradient_predivide_factor": 2.0}},
        "after the last backward pass of a step; remove gradient_predivide_factor",
    ),
    (
        {"sound": zero(prefetch_bucket_size=1, stage3_prefetch_bucket_size=2)},
        {"sound": zero(stage3_prefetch_bucket_size=2)},
        "are the same setting; keep stage3_prefetch_bucket_size",
    ),
    (
        {"zero_stage": 3, "sound": {"prescale_gradients": True}},
        {"sound": {"prescale_gradients": True}},
        "with ZeRO stage 3",
    ),
    (
        {"zero_stage": 2, "sound": {"gradient_predivide_factor": 2.0}},
        {"zero_stage": 2, "sound": {"gradient_predivide_factor": 2.0} | zero(reduce_scatter=False)},
        '"gradient_predivide_factor" 2 with ZeRO stage 2 needs',
    ),
    (
        {"sound": zero(legacy_stage1=True)},
        {"sound": zero(legacy_stage1=False)},
        "legacy_stage1: removed in DeepSpeed 0.19",
    ),
    (
        {"sound": {"data_types": {"param_dtype": "half"}}},
        {"sound": {"data_types": {"param_dtype": "half"}}, "precision": "fp16"},
        "make the parameters fp32; remove it, or enable",
    ),
    (
        {"sound": {"data_types": {"buffer_dtype": "bf16"}}},
        {"sound": {"data_types": {"buffer_dtype": "fp32"}}},
        "running statistics, which stay fp32",
    ),
    (
        {
            "zero_stage": 0,
            "precision": "bf16",
            "sound": {"data_types": {"grad_accum_dtype": "fp32"}},
        },
        {
            "zero_stage": 1,
            "precision": "bf16",
            "sound": {"data_types": {"grad_accum_dtype": "fp32"}},
        },
        "with ZeRO stage 0, gradients have the parameters' data type, bf16",
    ),
    (
        {"precision": "bf16", "sound": {"data_types": {"grad_accum_dtype": "fp16"}}},
        {"precision": "fp16", "sound": {"data_types": {"grad_accum_dtype": "fp16"}}},
        'needs the loss scale that comes with "fp16"',
    ),
    (
        {"zero_stage": 3, "sound": zero(zero_hpz_partition_size=3)},
        {"zero_stage": 3, "sound": zero(zero_hpz_partition_size=2)},
        "zero_hpz_partition_size 3 does not divide 4 ranks: 4 / 3 = 1.33",
    ),
    (
        {"zero_stage": 3, "sound": zero(module_granularity_threshold=5)},
        {"zero_stage": 2, "sound": zero(module_granularity_threshold=5)},
        "loses the shapes",
    ),
    (
        {"zero_stage": 3, "device": "cpu", "sound": zero(zero_quantized_weights=True)},
        {"zero_stage": 3, "sound": zero(zero_quantized_weights=True)},
        "has no kernel for a CPU",
    ),
    (
        {"zero_stage": 3, "autocast": "bf16", "sound": zero(zero_quantized_weights=True)},
        {"zero_stage": 3, "precision": "bf16", "sound": zero(zero_quantized_weights=True)},
        'together with "torch_autocast"',
    ),
    (
        {"zero_stage": 3, "sound": zero(zero_quantized_nontrainable_weights=True)},
        {"zero_stage": 2, "sound": zero(zero_quantized_nontrainable_weights=True)},
        "to 8 bits in every saved model",
    ),
    (
        {"offload": OFFLOADED, "sound": zero(offload_optimizer={"super_offload": True})},
        {"offload": OFFLOADED, "sound": zero(offload_optimizer={})},
        "unseen by the EMA",
    ),
    (
        {
            "zero_stage": 3,
            "offload": OFFLOADED,
            "optimizer": "SGD",
            "sound": zero(offload_optimizer={"ratio": 0.5}),
        },
        {
            "zero_stage": 3,
            "offload": OFFLOADED,
            "optimizer": "AdamW",
            "sound": zero(offload_optimizer={"ratio": 0.5}),
        },
        "needs DeepSpeed's CPUAdam on a GPU, but the optimizer is SGD",
    ),
    (
        {"offload": OFFLOADED, "arguments": {"amsgrad": True}},
        {"offload": OFFLOADED, "optimizer": "SGD", "arguments": {"amsgrad": True}},
        "has no AMSGrad",
    ),
    (
        {"device": "cpu", "arguments": {"capturable": True}},
        {"arguments": {"capturable": True}},
        "only states on a GPU can be captured",
    ),
    (
        {"pipelined": True, "sound": {"flops_profiler": {"enabled": True}}},
        {"sound": {"flops_profiler": {"enabled": True}}},
        "it would measure nothing",
    ),
    (
        {"pipelined": True, "sound": {"memory_breakdown": True}},
        {"sound": {"memory_breakdown": True}},
        "it would show zeros",
    ),
]


@pytest.mark.parametrize(("broken", "sound", "fault"), CASES, ids=[case[2][:40] for case in CASES])
def test_what_the_ranks_would_die_of_is_a_fault_and_what_they_would_not_is_none(
    broken, sound, fault
):
    (line,) = faults_of(broken)
    assert line.startswith("ds: ") and fault in line
    assert faults_of(sound) == []


@pytest.mark.parametrize(("there", "told"), [(False, 1), (True, 0)])
def test_a_service_needs_its_module(monkeypatch, there, told):
    monkeypatch.setattr("yolods.config.deepspeed.limits._installed", lambda module: there)
    assert len(faults_of({"sound": {"comet": {"enabled": True}}})) == told
    assert faults_of({"sound": {"comet": {"enabled": False}}}) == []
