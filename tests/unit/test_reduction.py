"""Where DeepSpeed reduces, our mean takes its place: on stand-ins of its optimizers. The real ones:
tests/dist/test_compression.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolods.zero.reduction import replace_reduction


def net() -> nn.Module:
    made = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Linear(3, 2), nn.Linear(2, 2))
    for weight in made[2].parameters():
        weight.requires_grad = False
    return made


def halved(gradients: list[Tensor]) -> None:
    for each in gradients:
        each /= 2


def engine(optimizer: Any, **more: Any) -> Any:
    def deepspeeds(*_: Any, **__: Any) -> None:
        raise AssertionError("DeepSpeed's own reduction")

    return SimpleNamespace(
        module=net(), optimizer=optimizer, buffered_allreduce_fallback=deepspeeds, **more
    )


class DeepSpeedZeroOptimizer:
    """Gradients on the parameters, or beside them in another dtype."""

    def __init__(self, beside: bool) -> None:
        self.use_grad_accum_attribute, self.gradient_accumulation_dtype = beside, torch.float32
        self.finished = 0

    def get_gradient_for_reduction(self, weight: nn.Parameter) -> Tensor | None:
        return weight.grad_accum if self.use_grad_accum_attribute else weight.grad

    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        raise AssertionError("DeepSpeed's own reduction")

    def overlapping_partition_gradients_reduce_epilogue(self) -> None:
        self.finished += 1


class BF16_Optimizer:
    def __init__(self, groups: list[list[nn.Parameter]]) -> None:
        self.bf16_groups = groups
        self.fp32_groups_gradients = [
            [torch.full((weight.numel(),), 4.0) for weight in group] for group in groups
        ]


def test_without_zero_the_parameters_gradients_are_averaged_and_missing_ones_are_zero() -> None:
    made = engine(torch.optim.SGD(net().parameters(), lr=0.1))
    replace_reduction(made, halved)
    made.module[0].weight.grad = torch.full_like(made.module[0].weight, 4.0)
    made.buffered_allreduce_fallback(grads=None, elements_per_buffer=5)
    assert made.module[0].weight.grad.eq(2).all()
    assert made.module[1].weight.grad.eq(0).all() and made.module[1].bias.grad.eq(0).all()
    assert made.module[2].weight.grad is None, "frozen"


@pytest.mark.parametrize("beside", [False, True])
def test_zero_1_cuts_its_shards_out_of_the_mean(beside: bool) -> None:
    made = engine(DeepSpeedZeroOptimizer(beside))
    attribute = "grad_accum" if beside else "grad"
    for weight in made.module.parameters():
        setattr(weight, attribute, None)
    setattr(made.module[1].bias, attribute, torch.full((2,), 4.0))
    seen: list[tuple[int, ...]] = []

    def average(gradients: list[Tensor]) -> None:
        seen.extend(tuple(each.shape) for each in gradients)
        assert not made.optimizer.finished, "DeepSpeed reads them only afterwards"
        halved(gradients)

    replace_reduction(made, average)
    made.optimizer.reduce_gradients(pipeline_parallel=False)
    assert seen == [(3, 2, 1, 1), (2, 3), (2,)] and made.optimizer.finished == 1
    assert getattr(made.module[1].bias, attribute).eq(2).all()
    assert getattr(made.module[0].weight, attribute).eq(0).all()


def test_flat_gradients_of_bf16_come_in_the_models_order_and_shapes() -> None:
    made = engine(None)
    conv, linear = made.module[0], made.module[1]
    made.optimizer = BF16_Optimizer([[linear.weight, conv.weight], [linear.bias]])
    seen: list[tuple[int, ...]] = []

    def average(gradients: list[Tensor]) -> None:
        seen.extend(tuple(each.shape) for each in gradients)
        halved(gradients)

    replace_reduction(made, average)
    made.buffered_allreduce_fallback()
    assert seen == [(3, 2, 1, 1), (2, 3), (2,)]
    assert all(each.eq(2).all() for group in made.optimizer.fp32_groups_gradients for each in group)


def test_an_optimizer_that_is_not_known_is_refused() -> None:
    class Other:
        pass

    with pytest.raises(RuntimeError, match=r"Other reduces gradients in another way than"):
        replace_reduction(engine(Other()), halved)
    lacking = BF16_Optimizer([])
    del lacking.bf16_groups
    with pytest.raises(RuntimeError, match="BF16_Optimizer reduces"):
        replace_reduction(engine(lacking), halved)
