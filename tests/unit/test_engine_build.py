"""From a configuration to an engine: what DeepSpeed, here a stand-in, is given, and what follows of
each word."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolods.config.reducing import ReductionConfig
from yolods.distributed.world import Ranks
from yolods.engine import build as module
from yolods.engine.build import build_engine, build_pipeline, build_zero, plan_schedule
from yolods.engine.pipeline.engine import StageBoundaries
from yolods.engine.zero_engine import ZeroEngine
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.model.graph.stage import RecomputedDetector, Stage
from yolods.optim.optimizers import OptimizerChoice

CPU = torch.device("cpu")
CHOICE = OptimizerChoice("SGD", 0.01, 0.9, 0.1)
ALONE = Ranks(0, 1, 0, "here", CPU)


def configured(
    tmp_path: Any = None, *, hyper: dict[str, Any] | None = None, **layout: Any
) -> SimpleNamespace:
    """A run's configuration, as far as an engine looks at it."""
    usual = {
        **{"precision": "fp32", "autocast": None, "zero_stage": 1, "dp_size": 1, "recompute": None},
        "pipeline": SimpleNamespace(schedule="1f1b"),
        "reduction": ReductionConfig(owned=True, overlapped=True, once="auto"),
        **{
            "offload_optimizer": False,
            "accumulation": 4,
            "accumulation_auto": True,
            "micro_batch": 2,
        },
        "batches": SimpleNamespace(batch=16),
        "own": SimpleNamespace(overflow=overflow(), compression=SimpleNamespace(kind="none")),
    }
    hypers = {
        **{
            "freeze": None,
            "sync_bn": False,
            "channels_last": None,
            "ema_decay": 0.99,
            "ema_tau": 10,
        },
        **{"box": 7.5, "cls": 0.5, "dfl": 1.5, "lrf": 0.01, "cos_lr": False},
        **{"warmup_epochs": 3.0, "warmup_momentum": 0.8},
    }
    return SimpleNamespace(
        hyper=SimpleNamespace(**{**hypers, **(hyper or {})}),
        deepspeed=SimpleNamespace(**{**usual, **layout}),
        epochs=3,
        weight_decay=5e-4,
        monitor_folders={} if tmp_path is None else {"WANDB_DIR": str(tmp_path / "wandb")},
        for_initialize=lambda bucket=None: {"train_batch_size": 2},
    )


def overflow() -> Any:
    from yolods.config.deepspeed.yolods_block import OverflowConfig

    return OverflowConfig()


@pytest.fixture
def given(monkeypatch) -> dict[str, Any]:
    """What `deepspeed.initialize` was given; and the folders that there were by then."""
    told: dict[str, Any] = {}

    def initialize(**arguments: Any) -> tuple[Any, None]:
        told.update(arguments, folder=os.environ.get("WANDB_DIR"))
        engine = SimpleNamespace(module=arguments["model"], optimizer=arguments["optimizer"])
        engine.dp_world_size = 1
        return engine, None

    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(initialize=initialize))
    monkeypatch.setattr(module, "equal_weights_stay", lambda _: nullcontext())
    monkeypatch.setattr(module, "build_stability", lambda *_: SimpleNamespace(restores=True))
    monkeypatch.delenv("WANDB_DIR", raising=False)
    return told


def detector() -> Any:
    torch.manual_seed(0)
    return build(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"))


@pytest.mark.parametrize(
    ("auto", "samples", "expected"),
    [
        (True, 1000, 4),
        (True, 10, 2),  # 30 samples of a run are two steps of 16
        (True, 1, 1),
        (False, 1, 4),  # what a user has written stays
    ],
)
def test_no_run_is_shorter_than_a_step_unless_a_user_wants_it_so(auto, samples, expected):
    schedule = plan_schedule(configured(accumulation_auto=auto, dp_size=3), CHOICE, samples)
    assert (schedule.accumulation, schedule.ramp, schedule.batch) == (expected, auto, 2 * 3)
    assert (schedule.lr0, schedule.momentum, schedule.warmup_bias_lr) == (0.01, 0.9, 0.1), (
        "the choice's"
    )
    assert (schedule.lrf, schedule.warmup_momentum, schedule.epochs) == (0.01, 0.8, 3)


def test_deepspeed_gets_the_closed_configuration_and_what_trains_alone(tmp_path, given):
    net = detector()
    engine = build_engine(net, configured(tmp_path, hyper={"freeze": 10}), CHOICE, ALONE)
    assert isinstance(engine, ZeroEngine) and given["model"] is net
    assert (given["config"], given["dist_init_required"], given["mpu"]) == (
        {"train_batch_size": 2},
        False,
        None,
    )
    trained = {id(each) for group in given["optimizer"].param_groups for each in group["params"]}
    expected = {
        id(each)
        for name, each in net.named_parameters()
        if int(name.split(".")[1]) >= 10 and ".dfl" not in name
    }
    assert trained == expected
    assert given["folder"] == str(tmp_path / "wandb") and (tmp_path / "wandb").is_dir(), (
        "a service looks for it"
    )
    assert sum(each.numel() for each in engine.masters.shards()) == sum(
        each.numel() for each in net.parameters() if each.requires_grad
    )


@pytest.mark.parametrize(("zero_stage", "alone"), [(0, True), (2, True), (3, False)])
def test_only_under_zero_3_a_forward_pass_needs_the_others(given, zero_stage, alone):
    assert (
        build_engine(detector(), configured(zero_stage=zero_stage), CHOICE, ALONE).share.alone
        is alone
    )


@pytest.mark.parametrize(
    ("precision", "channels_last", "dtype", "last"),
    [
        ("fp32", None, torch.float32, True),
        ("bf16", False, torch.bfloat16, False),
        ("fp16", True, torch.float16, True),
    ],
)
def test_images_come_in_the_model_s_own_type(given, precision, channels_last, dtype, last):
    config = configured(precision=precision, hyper={"channels_last": channels_last})
    inputs = build_engine(detector(), config, CHOICE, ALONE).inputs
    assert (inputs.dtype, inputs.channels_last) == (dtype, last)


def test_a_recomputed_detector_is_asked_for_by_segments(given):
    config = configured(recompute=SimpleNamespace(number_checkpoints=5))
    build_engine(detector(), config, CHOICE, ALONE)
    model = given["model"]
    assert isinstance(model, RecomputedDetector)
    assert -(-model.stop // model._recompute) == 5


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_has_the_mesh_and_the_last_one_the_loss(given, monkeypatch, stage):
    made: dict[str, Any] = {}
    names = ("parts", "mesh", "cut", "to", "schedule")
    monkeypatch.setattr(
        module, "PipelineEngine", lambda *told: made.update(zip(names, told, strict=True))
    )
    graph = build_graph(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3))
    first, last = ((0, 5), (5, len(graph.nodes)))[stage]
    mesh = SimpleNamespace(
        ranks=ALONE,
        replica=1,
        replicas=2,
        first=stage == 0,
        last=stage == 1,
        stages=2,
        data_group="group",
    )
    net, cut = Stage(graph, first, last), StageBoundaries((), ())
    build_pipeline(net, detector().model[-1], cut, configured(autocast="bf16"), CHOICE, mesh)
    share = made["parts"].share
    assert (share.dp_rank, share.dp_size, share.alone, share.group) == (1, 2, False, "group")
    assert (share.first_stage, share.last_stage) == (stage == 0, stage == 1)
    assert (made["parts"].loss is not None) == (stage == 1)
    assert (given["mpu"], made["to"], made["cut"]) == (mesh, torch.bfloat16, cut)
    assert made["parts"].strides == (8.0, 16.0, 32.0)


# A model that no rank holds whole


class Division:
    """Stands in for ZeRO-3's division: keeps what each layer was and frees it."""

    def __init__(self, net: Any) -> None:
        self.net, self.whole = net, {}

    def divide(self, layer: Any) -> None:
        real = [
            name for name, each in self.net.named_parameters() if each.numel() and not each.is_meta
        ]
        assert {id(self.net.get_parameter(name)) for name in real} == {
            id(each) for each in layer.parameters(recurse=False)
        }, "more than one layer has memory"
        for name in real:
            parameter = self.net.get_parameter(name)
            self.whole[name] = parameter.detach().clone()
            parameter.ds_shape, parameter.data = parameter.shape, parameter.data.new_empty(0)


def drawn() -> Blueprint:
    return Blueprint(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"), seed=3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [None, SimpleNamespace(number_checkpoints=3)])
def test_under_zero_3_one_layer_at_a_time_has_memory(given, monkeypatch, precision, recompute):
    divisions: list[Division] = []
    real = module._fill

    def fill(net: Any, values: Any, _: Any, dtype: torch.dtype) -> None:
        divisions.append(Division(net))
        real(net, values, divisions[0], dtype)

    monkeypatch.setattr(module, "_fill", fill)
    monkeypatch.setattr(Blueprint, "whole", lambda *_, **__: pytest.fail("a whole model"))
    config = configured(zero_stage=3, precision=precision, recompute=recompute)
    config.hyper.cls_remap, config.weights, config.resume = True, None, None
    engine, note = build_zero(drawn(), config, CHOICE, ALONE)
    monkeypatch.undo()
    expected, _ = drawn().whole(None)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert note == "" and divisions[0].whole.keys() == dict(expected.named_parameters()).keys()
    for name, parameter in expected.named_parameters():
        assert torch.equal(divisions[0].whole[name], parameter.to(dtype)), name
    buffers = dict(engine.net.named_buffers())
    for name, buffer in expected.named_buffers():
        assert buffers[name].dtype == buffer.dtype and torch.equal(buffers[name], buffer), name
    assert isinstance(engine.net, RecomputedDetector) is (recompute is not None)


@pytest.mark.parametrize(("stage", "activation"), [(2, None), (3, "torch.nn.PReLU()")])
def test_other_models_are_built_whole(given, monkeypatch, tmp_path, stage, activation):
    """Only ZeRO-3 divides weights, and some layers get their values only from their
    constructors."""
    yaml = tmp_path / "own.yaml"
    extra = "" if activation is None else f"activation: {activation}\n"
    yaml.write_text(
        f"scale: ''\n{extra}backbone: [[-1, 1, Conv, [16, 3, 8]]]\n"
        "head: [[-1, 1, Conv, [16, 3]], [[1], 1, Detect, [nc]]]\n"
    )
    monkeypatch.setattr(module, "_fill", lambda *_: pytest.fail("layer by layer"))
    blueprint = Blueprint(architecture(parse_name(str(yaml)), 2, 3), ("a", "b"), seed=0)
    config = configured(zero_stage=stage)
    config.hyper.cls_remap, config.weights, config.resume = True, None, None
    engine, _ = build_zero(blueprint, config, CHOICE, ALONE)
    assert not any(each.is_meta for each in engine.net.parameters())
