"""Whole gradients in buckets; real ranks: tests/dist/test_early_reduction.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolods.zero import whole_reduction
from yolods.zero.whole_reduction import WholeReduction


class Engine(SimpleNamespace):
    """An engine whose peer has the same gradients, three times as large."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            module=nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4))),
            optimizer=None,
            communication_data_type=torch.float32,
            gradient_average=True,
            last=True,
            sent=[],
            **settings,
        )

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.last

    def postscale_gradients(self) -> bool:
        return True

    def gradient_predivide_factor(self) -> float:
        return 1.0

    def all_reduce(self, flat: Tensor, group: Any, async_op: bool) -> Any:
        assert async_op
        self.sent.append(flat.numel())
        flat.mul_(4)
        return SimpleNamespace(wait=lambda: None)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(comm=made))
    monkeypatch.setattr(whole_reduction, "dist", SimpleNamespace(get_world_size=lambda _: 2))
    WholeReduction(made, None, elements=8)  # type: ignore[arg-type]
    return made


def backward(engine: Engine) -> list[Tensor]:
    """Add a gradient of 1 to every element, and the gradients that plain autograd would give."""
    weights = list(engine.module.parameters())
    torch.stack([each.sum() for each in weights]).sum().backward()
    return [each.grad for each in weights]


def test_buckets_begin_in_the_last_backward_pass_and_hold_the_mean(engine: Engine) -> None:
    for _ in range(2):
        engine.sent.clear()
        engine.last = False
        backward(engine)
        assert engine.sent == []
        engine.last = True
        gradients = backward(engine)
        assert engine.sent == [8, 8]
        engine.buffered_allreduce_fallback()
        assert engine.sent == [8, 8]
        # 1 twice here and 3 twice there: a mean of 4.
        assert all(torch.equal(each, torch.full((2, 2), 4.0)) for each in gradients)
        engine.module.zero_grad()


def test_a_gradient_that_never_comes_counts_as_zero(engine: Engine) -> None:
    engine.module[3].weight.sum().backward()
    assert engine.sent == []
    engine.buffered_allreduce_fallback()
    assert engine.sent == [8, 8]
    assert torch.equal(engine.module[3].weight.grad, torch.full((2, 2), 2.0))
    assert not engine.module[0].weight.grad.any()


def test_factors_that_only_deepspeed_knows_are_left_to_it(engine: Engine) -> None:
    assert WholeReduction.fits(engine)
    engine.gradient_predivide_factor = lambda: 2.0
    assert not WholeReduction.fits(engine)
