"""What DeepSpeed holds, against the formulas of the ZeRO paper (1910.02054, figure 1)."""

from __future__ import annotations

import importlib

import pytest
import torch

from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.plan.layout import Layout
from yolods.plan.memory.states import Parameters, holdings, parameters_of, state_tensors

COUNT = 1_200_000
PARAMETERS = Parameters(trained=(1_000_000, 150_000, 50_000), frozen=0, statistics=0)


def _layout(**settings: object) -> Layout:
    return Layout(imgsz=64, reduce_bucket=1, gather_bucket=1, **settings)


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_states_in_bf16_with_adam_are_those_of_the_paper(stage: int, replicas: int) -> None:
    layout = _layout(zero_stage=stage, replicas=replicas, precision="bf16")
    held = holdings(layout, PARAMETERS, state_tensors("AdamW"))
    paper = {0: 16.0, 1: 4 + 12 / replicas, 2: 2 + 14 / replicas}[stage]
    assert held.weights + held.states + held.between == pytest.approx(paper * COUNT)


def test_zero_3_holds_a_share_and_the_small_parameters() -> None:
    layout = _layout(zero_stage=3, replicas=4, precision="bf16")
    held = holdings(layout, PARAMETERS, state_tensors("AdamW"))
    share = 16 / 4 * COUNT
    assert held.weights + held.states + held.between == pytest.approx(share + 2 * 50_000)
    assert held.gathered == 2 * 1_150_000


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_moves_states_to_the_host(stage: int) -> None:
    plain, moved = (
        holdings(_layout(zero_stage=stage, replicas=2, offload_optimizer=offload), PARAMETERS, 2)
        for offload in (False, True)
    )
    assert moved.states == 0
    assert moved.host >= plain.host + plain.states + plain.moving_average


@pytest.mark.parametrize("replicas", [1, 4])
def test_offloaded_parameters_are_on_the_host_and_come_when_they_are_used(replicas: int) -> None:
    layouts = (
        _layout(zero_stage=3, replicas=replicas, offload_optimizer=True, offload_param=away)
        for away in (False, True)
    )
    kept, away = (holdings(layout, PARAMETERS, 2) for layout in layouts)
    share = 4 * COUNT // replicas
    assert away.host - kept.host == share
    assert away.weights == 4 * 50_000
    assert away.gathered == 4 * 1_150_000


def test_the_snapshot_is_one_of_masters_states_and_average() -> None:
    held = holdings(_layout(zero_stage=1, replicas=2, precision="bf16"), PARAMETERS, 2)
    assert held.host == 4 * (1 + 2 + 1) * COUNT / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_tensors_are_what_a_step_makes(name: str) -> None:
    entry = OPTIMIZERS[name]
    module, _, kind = entry.made_by.partition(":")
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    made = getattr(importlib.import_module(module), kind)([weight], **entry.arguments(0.9))
    made.step()
    found = made.state[weight].values()
    shaped = [each for each in found if isinstance(each, torch.Tensor) and each.shape == (2,)]
    assert state_tensors(name) == len(shaped)


def test_the_parameters_of_all_nodes_are_the_model_s() -> None:
    blueprint = Blueprint(architecture(parse_name("yolov5n"), 3, 3), ("a", "b", "c"), seed=0)
    graph = build_graph(blueprint.meta)
    whole = parameters_of(graph, range(len(graph.nodes)))
    halves = [parameters_of(graph, range(20)), parameters_of(graph, range(20, len(graph.nodes)))]
    assert whole.total + whole.frozen == blueprint.parameters
    assert sum(half.total for half in halves) == whole.total
    assert sum(half.statistics for half in halves) == whole.statistics > 0
