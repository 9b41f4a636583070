"""Parts of gradients for their owners; real ranks: tests/dist/test_early_reduction.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolods.zero import owned_reduction
from yolods.zero.owned_reduction import UNDER_WAY, OwnedReduction

FP32 = torch.float32


class DeepSpeedZeroOptimizer(SimpleNamespace):
    """Rank 1 of 2, with two parameters of 3 elements; it owns the last element of the first one,
    and the second one."""

    def __init__(self) -> None:
        self.parameters = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
        bucket = SimpleNamespace(params=[(0, 0, 10), (0, 1, 11)])
        super().__init__(
            **dict.fromkeys(OwnedReduction.needs),
            dp_process_group=None,
            cpu_offload=False,
            contiguous_gradients=True,
            partition_gradients=True,
            gradient_average=True,
        )
        self.ipg_buckets = {FP32: bucket}
        self.bit16_groups = [self.parameters]
        self.param_to_partition_ids = {0: {10: [0, 1], 11: [1]}}
        self.grad_start_offset = {0: {0: {10: 0}, 1: {10: 2, 11: 0}}}
        self.reduce_ipg_grads = lambda comm_dtype=None: None
        self.get_gradient_for_reduction = lambda parameter: parameter.grad
        self._get_compact_grad_partition_slice = lambda *_: None
        for parameter in self.parameters:
            parameter.grad = torch.zeros(3)


class Comm:
    """A peer with the same gradients, three times as large."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []
        self.waits = 0

    def _wait(self) -> None:
        self.waits += 1

    def exchange(
        self, output: Tensor, tensor: Tensor, received: list[int], counts: list[int], group: Any
    ) -> Any:
        self.counts.append(counts)
        mine = tensor.split(counts)[1]
        output.copy_(torch.cat([3 * mine, mine]))
        return SimpleNamespace(wait=self._wait)

    def reduce(self, tensor: Tensor, dst: int, **_: Any) -> Any:
        self.counts.append([dst, tensor.numel()])
        tensor.mul_(4)
        return SimpleNamespace(wait=self._wait)


@pytest.fixture(params=["gloo", "nccl"])
def comm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Comm:
    made = Comm()
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(comm=made))
    dist = SimpleNamespace(
        get_rank=lambda _: 1,
        get_world_size=lambda _: 2,
        get_backend=lambda _: request.param,
        get_global_rank=lambda _, rank: rank,
    )
    monkeypatch.setattr(owned_reduction, "dist", dist)
    monkeypatch.setattr(owned_reduction, "exchange", made.exchange)
    return made


def test_a_rank_stores_the_mean_of_what_it_owns(comm: Comm) -> None:
    optimizer = DeepSpeedZeroOptimizer()
    OwnedReduction(optimizer, overlapped=False, once=False)
    optimizer.average_tensor(torch.arange(1.0, 7.0), FP32)
    assert comm.counts in ([[2, 4]], [[0, 2], [1, 4]])
    assert optimizer.parameters[0].grad.tolist() == [0, 0, 6]
    assert optimizer.parameters[1].grad.tolist() == [8, 10, 12]


def test_a_few_buckets_are_under_way_until_the_pass_is_over(comm: Comm) -> None:
    optimizer = DeepSpeedZeroOptimizer()
    OwnedReduction(optimizer, overlapped=True, once=False)
    for _ in range(UNDER_WAY):
        optimizer.average_tensor(torch.ones(6), FP32)
    assert comm.waits == 0 and not optimizer.parameters[1].grad.any()
    optimizer.average_tensor(torch.ones(6), FP32)
    assert comm.waits and optimizer.parameters[1].grad.all()
    optimizer.reduce_ipg_grads(comm_dtype=FP32)  # makes room, and does not wait
    before = comm.waits
    optimizer.reduce_ipg_grads()
    assert comm.waits == before * (UNDER_WAY + 1)


@pytest.mark.parametrize("comm", ["gloo"], indirect=True)
def test_zero_1_on_gloo_keeps_all_buckets_under_way(comm: Comm) -> None:
    optimizer = DeepSpeedZeroOptimizer()
    optimizer.partition_gradients = False
    OwnedReduction(optimizer, overlapped=True, once=False)
    for _ in range(UNDER_WAY + 3):
        optimizer.average_tensor(torch.ones(6), FP32)
    assert comm.waits == 0
    optimizer.reduce_ipg_grads()
    assert comm.waits == UNDER_WAY + 3


def test_an_offloaded_bucket_is_complete_at_once(comm: Comm) -> None:
    optimizer = DeepSpeedZeroOptimizer()
    optimizer.cpu_offload = True
    OwnedReduction(optimizer, overlapped=True, once=False)
    optimizer.average_tensor(torch.ones(6), FP32)
    assert optimizer.parameters[1].grad.all()


def test_a_gradient_in_another_memory_format_is_stored_in_order(comm: Comm) -> None:
    optimizer = DeepSpeedZeroOptimizer()
    optimizer.parameters = [nn.Parameter(torch.zeros(1, 3, 1, 2))]
    optimizer.bit16_groups = [optimizer.parameters]
    optimizer.ipg_buckets[FP32].params = [(0, 0, 10)]
    optimizer.param_to_partition_ids = {0: {10: [1]}}
    optimizer.grad_start_offset = {0: {1: {10: 0}}}
    gradient = torch.zeros(1, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    optimizer.get_gradient_for_reduction = lambda parameter: gradient
    OwnedReduction(optimizer, overlapped=False, once=False)
    optimizer.average_tensor(torch.arange(6.0), FP32)
    assert gradient.flatten().tolist() == [0, 2, 4, 6, 8, 10]


def test_bf16_is_added_in_fp32_and_rounded_once() -> None:
    rows = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    assert owned_reduction._sum(rows).item() == 258
    assert (rows[0] + rows[1] + rows[2]).item() == 256


def test_another_deepspeed_is_named() -> None:
    optimizer = DeepSpeedZeroOptimizer()
    assert OwnedReduction.fits(optimizer)
    assert not OwnedReduction.fits(SimpleNamespace())
    del optimizer.average_tensor
    with pytest.raises(RuntimeError, match="lacks average_tensor"):
        OwnedReduction.fits(optimizer)
