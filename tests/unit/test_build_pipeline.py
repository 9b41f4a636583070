"""How a pipeline is laid over ranks and hosts, and which weights a stage takes. What is refused:
test_deepspeed_pipeline.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolods.checkpoint.pt_file import write_pt
from yolods.distributed.world import Ranks
from yolods.engine import build_pipeline as module
from yolods.engine.build_pipeline import build_stage, order_of, plan_stages
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph, live
from yolods.plan.stage_plan import StagePlan

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, "here", CPU)


def configured(**settings: Any) -> SimpleNamespace:
    """A run's configuration, as far as a pipeline looks at it."""
    block = {
        "stages": 2,
        "partition": "flops",
        "memory_gib": None,
        "activation_checkpoint_interval": 3,
        "schedule": "1f1b",
    }
    layout = {
        **{
            "precision": "fp32",
            "autocast": None,
            "micro_batch": 2,
            "accumulation": 2,
            "zero_stage": 0,
            "dp_size": 1,
        },
        **{"pipeline": SimpleNamespace(**block)},
    }
    hyper = SimpleNamespace(freeze=None, cls_remap=True)
    usual = {"imgsz": 64, "device": "cpu", "weights": None, "resume": None, "hyper": hyper}
    return SimpleNamespace(deepspeed=SimpleNamespace(**layout), **{**usual, **settings})


@pytest.fixture(scope="module")
def blueprint() -> Blueprint:
    return Blueprint(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"), seed=0)


@pytest.mark.parametrize(
    ("sent", "parameters", "order"),
    [
        (100, 10, "stages"),  # activations stay within a host
        (10, 1000, "replicas"),  # gradients do
    ],
)
def test_the_heavier_traffic_stays_within_a_host(sent, parameters, order):
    rows = tuple(SimpleNamespace(sent_bytes=sent, parameters=parameters) for _ in range(2))
    plan = StagePlan(None, None, rows, measured=False)
    assert order_of(plan, configured(), Ranks(0, 4, 0, "here", CPU, local_size=2)) == order


def test_gradients_weigh_by_their_type_and_activations_by_the_micro_batches():
    rows = tuple(SimpleNamespace(sent_bytes=300, parameters=100) for _ in range(2))
    plan, ranks = (
        StagePlan(None, None, rows, measured=False),
        Ranks(0, 4, 0, "here", CPU, local_size=2),
    )
    config = configured()
    assert (
        order_of(plan, config, ranks) == "replicas"
    )  # 2 cuts x 4 x 300 bytes, and not 8 links x 400
    config.deepspeed.precision = "bf16"
    assert order_of(plan, config, ranks) == "stages"
    config.deepspeed.accumulation = 1
    assert order_of(plan, config, ranks) == "replicas"


def test_rank_0_s_cuts_hold_for_all(blueprint, monkeypatch):
    """Another rank may have other memory; cuts of its own would not fit together with those of the
    others."""
    first = plan_stages(blueprint, configured(), ALONE)
    assert not first.measured and len(first.rows) == 2

    class Second(Ranks):
        def main_first(self, work: Any) -> Any:
            return first.partition

    monkeypatch.setattr(module, "choose", lambda *_: pytest.fail("a rank of its own"))
    second = plan_stages(blueprint, configured(), Second(1, 2, 1, "there", CPU))
    assert second.partition == first.partition and second.lines == first.lines


def test_on_a_cpu_nothing_is_measured_and_memory_is_nobody_s_limit():
    assert module._measured(None, configured(), ALONE) is None
    assert module._memory(ALONE) is None


def built(
    monkeypatch: pytest.MonkeyPatch, blueprint: Any, stage: int, config: SimpleNamespace
) -> tuple[Any, str, Any]:
    """This stage, the line about weights, and its boundaries; without an engine around them."""
    ranks = Ranks(stage, 2, stage, "here", CPU, local_size=2)
    monkeypatch.setattr(Ranks, "from_main", lambda self, value: value)
    monkeypatch.setattr(module, "Mesh", lambda ranks, stages, order: SimpleNamespace(stage=stage))
    monkeypatch.setattr(module, "build_pipeline", lambda *given: given)
    plan = plan_stages(blueprint, configured(), ALONE)
    (net, _, cut, *_), note = build_stage(blueprint, plan, config, None, ranks, None)
    return net, note, (cut, plan)


def test_a_stage_gets_the_nodes_of_its_own_bounds_and_the_names_that_cross_them(
    blueprint, monkeypatch
):
    halves = [built(monkeypatch, blueprint, stage, configured()) for stage in range(2)]
    (front, note, (before, plan)), (back, _, (after, _)) = halves
    middle = plan.partition.bounds[1]
    assert (front.start, front.stop, back.start, back.stop) == (
        0,
        middle,
        middle,
        len(plan.graph.nodes),
    )
    assert before.after == after.before == live(build_graph(blueprint.meta), middle)
    assert note == "" and front._recompute == 3
    names = [*front.state_dict(), *back.state_dict()]
    assert sorted(names) == sorted(blueprint.meta.state_dict())


@pytest.mark.parametrize(("resume", "read"), [(None, True), (Path("runs/exp"), False)])
def test_a_stage_takes_its_own_of_the_weights_that_were_given_but_not_when_a_run_goes_on(
    blueprint, monkeypatch, tmp_path, resume, read
):
    """Layer by layer: no stage builds the whole model."""
    other = Blueprint(blueprint.layers, blueprint.names, seed=5)
    whole, _ = other.whole(None)
    file = tmp_path / "a.pt"
    write_pt(file, whole, whole.state_dict().items(), {}, half=False)
    monkeypatch.setattr(Blueprint, "whole", lambda *_, **__: pytest.fail("a whole model"))
    net, note, _ = built(monkeypatch, blueprint, 1, configured(weights=file, resume=resume))
    state = whole.state_dict()
    weight = next(
        name for name, each in net.named_parameters() if each.dim() == 4 and ".dfl" not in name
    )
    assert torch.equal(net.state_dict()[weight], state[weight]) is read
    assert note == (f"Transferred {len(state)}/{len(state)} tensors from {file}" if read else "")
    assert all(torch.isfinite(each).all() for each in net.state_dict().values())


def test_layers_that_only_their_constructors_fill_come_from_a_whole_model(monkeypatch, tmp_path):
    yaml = tmp_path / "own.yaml"
    yaml.write_text(
        "scale: ''\nactivation: torch.nn.PReLU()\n"
        "backbone: [[-1, 1, Conv, [16, 3, 8]], [-1, 1, Conv, [16, 3]]]\n"
        "head: [[-1, 1, Conv, [16, 3]], [[2], 1, Detect, [nc]]]\n"
    )
    blueprint = Blueprint(architecture(parse_name(str(yaml)), 2, 3), ("a", "b"), seed=0)
    stages = [built(monkeypatch, blueprint, stage, configured())[0] for stage in range(2)]
    found = {name: value for each in stages for name, value in each.state_dict().items()}
    slopes = [name for name in found if name.endswith("act.weight")]
    assert slopes and all(found[name].item() == 0.25 for name in slopes)
