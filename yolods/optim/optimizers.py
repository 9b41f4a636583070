"""Builds the optimizer: ultralytics' parameter groups and its `optimizer=auto` rule."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.errors import UserError
from yolods.model.freezing import Frozen, is_frozen, marks_of
from yolods.optim.lr_schedule import GROUPS

log = logging.getLogger(__name__)

_NORMS = tuple(kind for name, kind in vars(nn).items() if "Norm" in name and isinstance(kind, type))


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer's name and the values that the schedule starts from."""

    name: str
    """A key of `OPTIMIZERS`."""
    lr: float
    """Learning rate after warm-up."""
    momentum: float
    """Momentum, or Adam's beta1."""
    warmup_bias_lr: float
    """Learning rate of biases at the start of warm-up."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments from the DeepSpeed JSON: betas, eps, nesterov, ..."""


def choose_optimizer(
    hyper: Any,
    *,
    samples: int,
    batch: int,
    epochs: int,
    nc: int,
    given: Mapping[str, Any] | None = None,
) -> OptimizerChoice:
    """The configured optimizer, or for `auto` the one that ultralytics would choose.

    Args:
        hyper: hyper-parameters, with the JSON's optimizer merged in.
        given: "params" of the JSON's optimizer, completed with torch's defaults.
    """
    if hyper.optimizer == "auto":
        steps = math.ceil(samples / max(batch, hyper.nbs)) * epochs
        return _auto(hyper, steps, epochs, nc)
    further = {
        key: value
        for key, value in (given or {}).items()
        if key not in ("lr", "momentum", "weight_decay")
    }
    return OptimizerChoice(
        hyper.optimizer, hyper.lr0, hyper.momentum, hyper.warmup_bias_lr, further
    )


def _auto(hyper: Any, steps: int, epochs: int, nc: int) -> OptimizerChoice:
    """AdamW for short runs, and SGD above 10,000 steps.

    There ultralytics uses MuSGD, which orthogonalises whole weight matrices. A ZeRO rank holds only
    a flat piece of each, so SGD with the same lr and momentum replaces it. MuSGD starts with
    momentum 0.9, and a warm-up changes that to the hyper-parameter's.
    Source: ultralytics engine/trainer.py, `build_optimizer`.
    """
    if steps > 10_000:
        # Without a warm-up nothing would change ultralytics' 0.9.
        warms_up = min(hyper.warmup_epochs, epochs - 1) > 0
        return OptimizerChoice("SGD", 0.01, hyper.momentum if warms_up else 0.9, 0.0)
    return OptimizerChoice("AdamW", round(0.002 * 5 / (4 + nc), 6), 0.9, 0.0)


def freeze(net: nn.Module, frozen: Frozen) -> list[str]:
    """Freeze layers as ultralytics does: the first N, or those listed by index or name.

    The DFL bins are always frozen.

    Returns:
        prefixes of what is frozen, for `freeze_statistics`.

    Raises:
        UserError: nothing would be left to train.
    """
    marks = marks_of(frozen)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = not is_frozen(name, marks)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(
            f"freeze={frozen}: nothing would be left to train in the model, or in one stage of the "
            "pipeline; freeze fewer layers, or put them into one stage with layers that train"
        )
    return marks


def freeze_statistics(net: nn.Module, marks: list[str]) -> None:
    """Put frozen BatchNorm layers into evaluation mode, which keeps their statistics."""
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and is_frozen(name, marks):
            module.eval()


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the trainable parameters into `GROUPS`; only `weight` decays.

    Empty groups are omitted.

    Args:
        weight_decay: already scaled to the global batch (ultralytics: decay x batch x accumulation
            / nbs).
    """
    members: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for module_name, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                members[_group_of(module, f"{module_name}.{name}")].append(parameter)
    decay = {"weight": weight_decay}
    return [
        {"params": parameters, "weight_decay": decay.get(group, 0.0), "param_group": group}
        for group, parameters in members.items()
        if parameters
    ]


def _group_of(module: nn.Module, name: str) -> str:
    """The group of a parameter.

    Args:
        module: the module that owns it.
        name: its full name.
    """
    # By the name of module and parameter, as ultralytics does: a module named "bias" counts too.
    if "bias" in name:
        return "bias"
    return "bn" if isinstance(module, _NORMS) else "weight"


def build_optimizer(
    choice: OptimizerChoice,
    groups: list[dict[str, Any]],
    device: torch.device,
    *,
    offload: bool = False,
) -> torch.optim.Optimizer:
    """Build the optimizer from its entry in `OPTIMIZERS`, with the fastest kernel available.

    That is torch's fused kernel, which unscales and clips in the same pass. If a GPU's optimizer
    states are in host memory, it is DeepSpeed's kernel for that. Its first start compiles it for
    minutes, so a log line announces it.
    """
    entry = OPTIMIZERS[choice.name]
    groups = [{**group, **entry.groups.get(group["param_group"], {})} for group in groups]
    arguments = {"lr": choice.lr, **entry.arguments(choice.momentum), **choice.arguments}
    if offload and device.type == "cuda" and (kernel := entry.on_host):
        log.info(
            "Loading DeepSpeed's %s; its first use on a machine compiles it, which takes two to "
            "three minutes",
            kernel.made_by.rpartition(":")[2].removeprefix("DeepSpeed"),
        )
        return _class(kernel.made_by)(groups, **arguments, **kernel.arguments)
    # A kernel that the JSON chooses takes precedence.
    if entry.has_fused and not {"foreach", "fused", "differentiable"} & arguments.keys():
        arguments["fused"] = True
    return _class(entry.made_by)(groups, **arguments)


def _class(made_by: str) -> Any:
    module, _, name = made_by.partition(":")
    return getattr(importlib.import_module(module), name)


def set_rates(optimizer: Any, lr: tuple[float, float, float], momentum: float) -> None:
    """Write a step's learning rates (ordered as `GROUPS`) and momentum into the groups.

    As in ultralytics, only a `momentum` key is warmed up; Adam's betas do not change.
    """
    rates = dict(zip(GROUPS, lr, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = rates[group["param_group"]]
        if "momentum" in group:
            group["momentum"] = momentum
