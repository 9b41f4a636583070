"""Parameter groups, the choice of an optimizer, and freezing: ultralytics' own rules."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from yolods.errors import UserError
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.optim.optimizers import (
    OptimizerChoice,
    build_optimizer,
    choose_optimizer,
    freeze,
    freeze_statistics,
    parameter_groups,
    set_rates,
)

CPU = torch.device("cpu")


@pytest.fixture
def net():
    return build(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"))


def theirs(net, name, iterations, nc=2):
    """What BaseTrainer.build_optimizer makes for a model; also the arguments it changes."""
    from ultralytics.engine.trainer import BaseTrainer

    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01, warmup_bias_lr=0.1), data={"nc": nc})
    optimizer = BaseTrainer.build_optimizer(
        trainer, net, name=name, lr=0.01, momentum=0.937, decay=0.0005, iterations=iterations
    )
    return optimizer, trainer.args


def named(net, groups):
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {group["param_group"]: [names[id(p)] for p in group["params"]] for group in groups}


@pytest.mark.parametrize("frozen", [None, 3])
def test_groups_are_those_of_ultralytics(net, frozen):
    freeze(net, frozen)
    ours = parameter_groups(net, 0.0005)
    optimizer, _ = theirs(net, "SGD", 1)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    expected = {
        group: [
            name for name in names if name in trained
        ]  # a parameter without a gradient never moves there
        for group, names in named(net, optimizer.param_groups).items()
    }
    assert named(net, ours) == expected
    assert {group["param_group"]: group["weight_decay"] for group in ours} == {
        "weight": 0.0005,
        "bn": 0.0,
        "bias": 0.0,
    }
    assert [group["param_group"] for group in ours] == ["weight", "bn", "bias"]
    assert all(expected.values())


def test_empty_groups_are_left_out():
    assert [
        group["param_group"] for group in parameter_groups(nn.Conv2d(1, 1, 1, bias=False), 0.1)
    ] == ["weight"]


def hyper(**changes):
    values = {
        "optimizer": "auto",
        "nbs": 64,
        "lr0": 0.01,
        "momentum": 0.937,
        "warmup_bias_lr": 0.1,
        "warmup_epochs": 0,
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("samples", "batch", "epochs"),
    [(64, 16, 100), (64 * 100, 16, 100), (64 * 100 + 1, 16, 100), (100_000, 128, 13)],
)
@pytest.mark.parametrize("nc", [1, 2, 80])
def test_the_automatic_choice_is_ultralytics(net, samples, batch, epochs, nc):
    """Beyond 10,000 steps ultralytics takes MuSGD, for which SGD with the same rate and momentum
    stands in."""
    import math

    # engine/trainer.py, `_build_train_pipeline`
    iterations = math.ceil(samples / max(batch, 64)) * epochs
    optimizer, args = theirs(net, "auto", iterations, nc)
    choice = choose_optimizer(hyper(), samples=samples, batch=batch, epochs=epochs, nc=nc)
    group = optimizer.param_groups[0]
    assert choice.name == type(optimizer).__name__.removeprefix("Mu")
    assert choice.lr == args.lr0
    assert choice.momentum == (group["betas"][0] if "betas" in group else group["momentum"])
    assert choice.warmup_bias_lr == args.warmup_bias_lr == 0.0


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "momentum"),
    [(3.0, 400, 0.937), (0.5, 400, 0.937), (0, 400, 0.9), (3.0, 1, 0.9)],
)
def test_a_long_automatic_run_is_warmed_up_to_the_momentum_of_the_hyper_parameters(
    warmup_epochs, epochs, momentum
):
    """ultralytics' optimizer begins with 0.9, and its warm-up ends at `args.momentum`, which `auto`
    leaves alone."""
    samples = 64 * (10_000 // epochs + 1)
    choice = choose_optimizer(
        hyper(warmup_epochs=warmup_epochs), samples=samples, batch=16, epochs=epochs, nc=2
    )
    assert (choice.name, choice.momentum) == ("SGD", momentum)


def test_both_sides_of_ten_thousand_steps():
    sides = [
        choose_optimizer(hyper(), samples=n, batch=64, epochs=100, nc=2).name for n in (6400, 6401)
    ]
    assert sides == ["AdamW", "SGD"]


def test_a_named_optimizer_keeps_what_the_user_said():
    given = {"lr": 0.5, "momentum": 0.1, "weight_decay": 0.3, "nesterov": False}
    choice = choose_optimizer(
        hyper(optimizer="SGD", lr0=0.02), samples=10**6, batch=1, epochs=99, nc=2, given=given
    )
    assert choice == OptimizerChoice("SGD", 0.02, 0.937, 0.1, {"nesterov": False})


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"])
def test_optimizers_are_built_with_ultralytics_arguments(net, name):
    freeze(net, None)
    ours = build_optimizer(
        OptimizerChoice(name, 0.01, 0.937, 0.1), parameter_groups(net, 0.0005), CPU
    )
    expected, _ = theirs(net, name, 1)
    assert type(ours) is type(expected)
    for mine, other in zip(ours.param_groups, expected.param_groups, strict=True):
        differing = {
            key
            for key in mine
            if mine[key] != other[key] and key not in ("params", "fused", "foreach")
        }
        assert not differing


def test_arguments_of_the_json_win(net):
    choice = OptimizerChoice("AdamW", 0.01, 0.9, 0.0, {"betas": (0.8, 0.99), "eps": 1e-6})
    group = build_optimizer(choice, parameter_groups(net, 0.0), CPU).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.99), 1e-6)


def test_rates_of_a_step_reach_their_groups(net):
    optimizer = build_optimizer(
        OptimizerChoice("SGD", 0.01, 0.9, 0.1), parameter_groups(net, 0.0), CPU
    )
    set_rates(optimizer, (0.1, 0.2, 0.3), 0.85)
    assert {group["param_group"]: group["lr"] for group in optimizer.param_groups} == {
        "weight": 0.1,
        "bn": 0.2,
        "bias": 0.3,
    }
    assert {group["momentum"] for group in optimizer.param_groups} == {0.85}


def test_betas_are_not_warmed_up(net):
    """ultralytics changes a `momentum` key only; see BaseTrainer._do_train."""
    optimizer = build_optimizer(
        OptimizerChoice("AdamW", 0.01, 0.9, 0.1), parameter_groups(net, 0.0), CPU
    )
    set_rates(optimizer, (0.1, 0.1, 0.1), 0.5)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert all("momentum" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("frozen", [None, 1, 10, [0, 2, 23], ["24.cv2"]])
def test_freezing_is_ultralytics(net, frozen):
    """engine/trainer.py, `_setup_train`: names that hold `model.<x>.` or `.dfl` get no gradient."""
    listed = frozen if isinstance(frozen, list) else range(frozen or 0)
    expected = {
        name
        for name, _ in net.named_parameters()
        if not any(mark in name for mark in [f"model.{x}." for x in listed] + [".dfl"])
    }
    freeze(net, frozen)
    assert {
        name for name, parameter in net.named_parameters() if parameter.requires_grad
    } == expected
    assert 0 < len(expected) < len(list(net.parameters()))


def test_layer_1_is_not_layer_11(net):
    freeze(net, [1])
    state = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    assert not state["model.1.conv.weight"]
    assert state["model.10.conv.weight"]


def test_freezing_everything_is_one_line(net):
    with pytest.raises(UserError) as caught:
        freeze(net, 25)
    assert str(caught.value).startswith("freeze=25: nothing would be left to train in the model")
    assert "\n" not in str(caught.value)


def test_statistics_of_frozen_layers_stand_still(net):
    marks = freeze(net, 2)
    net.train()
    freeze_statistics(net, marks)
    before = {
        name: buffer.clone() for name, buffer in net.named_buffers() if "running_mean" in name
    }
    net(torch.rand(2, 3, 64, 64))
    moved = {
        name
        for name, buffer in net.named_buffers()
        if name in before and not torch.equal(buffer, before[name])
    }
    frozen = {name for name in before if name.startswith(("model.0.", "model.1."))}
    assert frozen
    assert moved == before.keys() - frozen


def test_sgd_without_a_momentum_is_built(net):
    group = build_optimizer(
        OptimizerChoice("SGD", 0.01, 0.0, 0.1), parameter_groups(net, 0.0), CPU
    ).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


@pytest.mark.parametrize(
    ("given", "nesterov"), [({"nesterov": False}, False), ({"nesterov": True}, True), (None, True)]
)
def test_nesterov_is_the_jsons_to_say_where_it_names_the_optimizer(net, given, nesterov):
    """DeepSpeed hands its parameters to torch, whose SGD has it off."""
    choice = choose_optimizer(
        hyper(optimizer="SGD"), samples=100, batch=1, epochs=9, nc=2, given=given
    )
    group = build_optimizer(choice, parameter_groups(net, 0.0), CPU).param_groups[0]
    assert group["nesterov"] == nesterov
