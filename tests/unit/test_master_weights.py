"""Where DeepSpeed keeps fp32 masters is known by kind; another DeepSpeed is noticed. Real engines:
tests/parity."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from yolods.zero.master_weights import (
    Bf16Masters,
    PartitionedMasters,
    PlainMasters,
    UnfusedMasters,
    Zero3Masters,
    full_shape,
    masters_of,
)


def fake(name, **attributes):
    """An optimizer whose class has this name."""
    return type(name, (SimpleNamespace,), {})(**attributes)


def test_torch_optimizers_hold_their_own_masters():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    masters = masters_of(torch.optim.AdamW([{"params": [first]}, {"params": [second]}]))
    assert isinstance(masters, PlainMasters)
    masters.shards()[1].fill_(7.0)
    masters.publish()
    assert second.tolist() == [7.0, 7.0, 7.0]


def test_unfused_masters_are_rounded_into_the_model():
    master, weight = (
        nn.Parameter(torch.zeros(3)),
        nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)),
    )
    masters = masters_of(
        fake("FP16_UnfusedOptimizer", fp32_groups=[[master]], fp16_groups=[[weight]])
    )
    assert isinstance(masters, UnfusedMasters)
    assert masters.members() == [[weight]]
    masters.shards()[0].fill_(1.001)
    masters.publish()
    assert torch.equal(weight.data, torch.full((3,), 1.001).bfloat16())


@pytest.mark.parametrize(
    ("name", "attributes", "kind"),
    [
        (
            "DeepSpeedZeroOptimizer",
            ("single_partition_of_fp32_groups", "round_robin_bit16_groups"),
            PartitionedMasters,
        ),
        ("BF16_Optimizer", ("fp32_groups_flat_partition", "bf16_groups"), Bf16Masters),
    ],
)
def test_partitions_are_published_by_deepspeed(name, attributes, kind):
    called = []
    partitions, weights = (
        [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))],
        [["a"], ["b", "c"]],
    )
    held = dict(zip(attributes, (partitions, weights), strict=True))
    masters = masters_of(fake(name, **held, update_lp_params=lambda: called.append(1)))
    assert masters.members() == weights
    assert type(masters) is kind
    assert [shard.data_ptr() for shard in masters.shards()] == [
        part.data_ptr() for part in partitions
    ]
    masters.publish()
    assert called == [1]


def test_zero3_follows_the_end_of_deepspeeds_step():
    called = []
    resident = SimpleNamespace(all_gather=lambda everyone: called.append(("gather", len(everyone))))
    optimizer = fake(
        "DeepSpeedZeroOptimizer_Stage3",
        fp32_partitioned_groups_flat=[nn.Parameter(torch.ones(4))],
        fp16_groups=[[], []],
        persistent_parameters=[resident],
        _partition_all_parameters=lambda: called.append("partition"),
        _reassign_or_swap_out_partitioned_parameters=lambda index: called.append(("assign", index)),
        invalidate_secondary_tensor=lambda: called.append("invalidate"),
    )
    masters = masters_of(optimizer)
    assert isinstance(masters, Zero3Masters)
    masters.publish()
    assert called == ["partition", ("assign", 0), ("assign", 1), "invalidate", ("gather", 1)]


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (
            fake("DeepSpeedZeroOptimizer", update_lp_params=None),
            "lacks single_partition_of_fp32_groups, round_robin_bit16_groups;",
        ),
        (
            fake("BF16_Optimizer"),
            "lacks fp32_groups_flat_partition, bf16_groups, update_lp_params;",
        ),
        (fake("NewOptimizer"), "NewOptimizer is not supported;"),
    ],
)
def test_another_deepspeed_is_noticed(optimizer, words):
    with pytest.raises(RuntimeError) as caught:
        masters_of(optimizer)
    assert words in str(caught.value)
    assert "Install the versions of constraints.txt" in str(caught.value)


def test_the_installed_deepspeed_has_what_is_needed():
    """Names that DeepSpeed's own classes use, so that a changed version fails here and not in a
    run."""
    import inspect

    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    for theirs, ours in (
        (DeepSpeedZeroOptimizer, PartitionedMasters),
        (DeepSpeedZeroOptimizer_Stage3, Zero3Masters),
        (BF16_Optimizer, Bf16Masters),
        (FP16_UnfusedOptimizer, UnfusedMasters),
    ):
        source = inspect.getsource(theirs)
        assert all(name in source for name in ours.needs), theirs


def test_a_partitioned_parameter_tells_its_whole_shape():
    parameter = nn.Parameter(torch.zeros(0))
    assert full_shape(nn.Parameter(torch.zeros(2, 3))) == (2, 3)
    parameter.ds_shape = torch.Size((8, 3, 1, 1))
    assert full_shape(parameter) == (8, 3, 1, 1)


def test_states_go_out_and_come_back():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    optimizer.step()
    masters = masters_of(optimizer)
    (saved,) = [{k: v.clone() for k, v in state.items()} for state in masters.states()]
    other = nn.Parameter(torch.ones(3))
    fresh = torch.optim.AdamW([other], lr=0.1)
    masters_of(fresh).load_states([saved])
    (loaded,) = masters_of(fresh).states()
    assert loaded.keys() == saved.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    assert loaded["exp_avg"].data_ptr() != saved["exp_avg"].data_ptr()


def test_states_are_loaded_into_the_memory_of_those_that_are_held():
    """DeepSpeed keeps views of it, and a second set of moments would stay for good."""
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    masters = masters_of(optimizer)
    held = masters.states()
    saved = [{key: torch.full_like(value, 7.0) for key, value in state.items()} for state in held]
    masters.load_states([{**state, "more": 5} for state in saved])
    for before, now in zip(held, masters.states(), strict=True):
        assert now.pop("more") == 5 and now.keys() == before.keys()
        assert all(now[key] is before[key] and bool((now[key] == 7.0).all()) for key in now)
