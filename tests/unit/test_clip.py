"""The ZeRO-0 clip is torch's, and tells the norm."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from yolods.stability.clip import clip_by_global_norm


def engine_of(module: nn.Module, limit: float) -> SimpleNamespace:
    engine = SimpleNamespace(module=module, gradient_clipping=lambda: limit, _global_grad_norm=None)
    clip_by_global_norm(engine)
    return engine


@pytest.mark.parametrize(("limit", "factor"), [(10.0, 1.0), (5.0, 1.0), (1.0, 0.2)])
def test_gradients_above_the_limit_are_scaled_to_it(limit, factor):
    module = nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    engine = engine_of(module, limit)
    engine.clip_fp32_gradients()
    assert float(engine._global_grad_norm) == pytest.approx(5.0)
    torch.testing.assert_close(module.weight.grad, torch.tensor([[3.0 * factor, 0.0]]))
    torch.testing.assert_close(module.bias.grad, torch.tensor([4.0 * factor]))


def test_frozen_parameters_have_no_part_in_it():
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    module.weight.grad = torch.tensor([[0.0, 2.0]])
    engine = engine_of(module, 1.0)
    engine.clip_fp32_gradients()
    assert float(engine._global_grad_norm) == pytest.approx(2.0)
