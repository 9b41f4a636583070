"""Layers are handed to DeepSpeed one at a time; a stand-in notes what it is given. What becomes of
the numbers: tests/dist/test_large_models.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from yolods.zero.layers import LayerPartition


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, Any]]:
    """What DeepSpeed was told, in order."""
    calls: list[tuple[str, Any]] = []

    def init(*, module: nn.Module, **settings: Any) -> None:
        calls.append(("first", (list(module.parameters()), settings)))
        for parameter in module.parameters():
            parameter.convert_to_zero_parameters = lambda param_list: calls.append(
                ("later", param_list)
            )

    groups = SimpleNamespace(_get_zero_param_intra_parallel_group=lambda: "a group")
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero", SimpleNamespace(Init=init))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", SimpleNamespace(groups=groups))
    return calls


def test_one_set_of_settings_divides_all_layers(told):
    layers = [nn.Conv2d(3, 4, 1, dtype=torch.bfloat16), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)]
    partition = LayerPartition({"zero_optimization": {"stage": 3}})
    for layer in layers:
        partition.divide(layer)
    (_, (parameters, settings)), *later = told
    assert [kind for kind, _ in told] == ["first", "later", "later"]
    assert parameters == list(layers[0].parameters())
    assert [each for _, each in later] == [list(layer.parameters()) for layer in layers[1:]]
    assert settings == {
        "config_dict_or_path": {"zero_optimization": {"stage": 3}},
        "dtype": torch.bfloat16,
        "zero_param_parallel_group": "a group",
    }


def test_a_layer_without_parameters_of_its_own_is_nothing_to_divide(told):
    partition = LayerPartition({})
    partition.divide(nn.BatchNorm2d(4, affine=False))
    partition.divide(nn.Sequential(nn.Conv2d(3, 4, 1)))
    assert told == []
