"""Which optimizer trains which parameters: ultralytics' groups and its `optimizer=auto` rule."""

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


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer by name with the values that a schedule starts from."""

    name: str
    """Of `OPTIMIZERS`."""
    lr: float
    """Learning rate after warm-up."""
    momentum: float
    """Momentum, or Adam's beta1."""
    warmup_bias_lr: float
    """Learning rate of biases at the start of warm-up."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments that a DeepSpeed JSON gives: betas, eps, nesterov, ..."""


def choose_optimizer(
    hyper: Any, *, samples: int, batch: int, epochs: int, nc: int, given: Mapping[str, Any] | None = None
) -> OptimizerChoice:
    """The optimizer that was named, or for `auto` the one that ultralytics would take.

    `auto` is AdamW for short runs and SGD beyond 10,000 steps. There ultralytics takes MuSGD, which orthogonalises
    whole matrices; a ZeRO rank holds a flat piece of them, so SGD with the same lr and momentum stands in. That begins
    with momentum 0.9, which a warm-up brings to the hyper-parameter's.
    Source: ultralytics engine/trainer.py, `build_optimizer`.

    Args:
        hyper: hyper-parameters, with the JSON's optimizer merged in.
        given: the "params" of the JSON's optimizer, with what they leave to torch's defaults.
    """
    if hyper.optimizer != "auto":
        further = {key: value for key, value in (given or {}).items() if key not in ("lr", "momentum", "weight_decay")}
        return OptimizerChoice(hyper.optimizer, hyper.lr0, hyper.momentum, hyper.warmup_bias_lr, further)
    steps = math.ceil(samples / max(batch, hyper.nbs)) * epochs
    if steps > 10_000:
        warms_up = min(hyper.warmup_epochs, epochs - 1) > 0
        return OptimizerChoice("SGD", 0.01, hyper.momentum if warms_up else 0.9, 0.0)
    return OptimizerChoice("AdamW", round(0.002 * 5 / (4 + nc), 6), 0.9, 0.0)


def freeze(net: nn.Module, frozen: Frozen) -> list[str]:
    """Freeze layers as ultralytics does: the first N, or those listed by index or name; the DFL bins always.

    Returns:
        marks of what is frozen, for `freeze_statistics`.

    Raises:
        UserError: nothing would be left to train.
    """
    marks = marks_of(frozen)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = not is_frozen(name, marks)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(
            f"freeze={frozen}: nothing would be left to train in the model, or in one stage of the pipeline; "
            "freeze fewer layers, or cut them into one stage with others"
        )
    return marks


def freeze_statistics(net: nn.Module, marks: list[str]) -> None:
    """Put frozen BatchNorm layers into evaluation mode, so that their running statistics stay as they are."""
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and is_frozen(name, marks):
            module.eval()


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into `GROUPS`; only `weight` decays. Empty groups are left out.

    Args:
        weight_decay: already scaled to the global batch (ultralytics: decay x batch x accumulation / nbs).
    """
    norms = tuple(kind for name, kind in vars(nn).items() if "Norm" in name and isinstance(kind, type))
    members: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for module_name, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if "bias" in f"{module_name}.{name}":
                members["bias"].append(parameter)
            elif isinstance(module, norms):
                members["bn"].append(parameter)
            else:
                members["weight"].append(parameter)
    decay = {"weight": weight_decay}
    return [
        {"params": parameters, "weight_decay": decay.get(group, 0.0), "param_group": group}
        for group, parameters in members.items()
        if parameters
    ]


def build_optimizer(
    choice: OptimizerChoice, groups: list[dict[str, Any]], device: torch.device, *, offload: bool = False
) -> torch.optim.Optimizer:
    """Construct the optimizer from its entry in `OPTIMIZERS`, on the fastest kernel at hand.

    That is torch's fused one, which unscales and clips in the same pass; and where a GPU's states live on the host the
    kernel that DeepSpeed has for it: compiling it takes minutes on the first start, which is said.
    """
    entry = OPTIMIZERS[choice.name]
    groups = [{**group, **entry.groups.get(group["param_group"], {})} for group in groups]
    arguments = {"lr": choice.lr, **entry.arguments(choice.momentum), **choice.arguments}
    if offload and device.type == "cuda" and (kernel := entry.on_host):
        log.info(
            "Loading DeepSpeed's %s; the first time on a machine it is compiled, for two to three minutes",
            kernel.made_by.rpartition(":")[2].removeprefix("DeepSpeed"),
        )
        return _class(kernel.made_by)(groups, **arguments, **kernel.arguments)
    if entry.has_fused and not {"foreach", "fused", "differentiable"} & arguments.keys():
        arguments["fused"] = True
    return _class(entry.made_by)(groups, **arguments)


def _class(made_by: str) -> Any:
    module, _, name = made_by.partition(":")
    return getattr(importlib.import_module(module), name)


def set_rates(optimizer: Any, lr: tuple[float, float, float], momentum: float) -> None:
    """Write a step's learning rates (in the order of `GROUPS`) and momentum into the optimizer's groups.

    As in ultralytics only a `momentum` key is warmed up; Adam's betas are left alone.
    """
    rates = dict(zip(GROUPS, lr, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = rates[group["param_group"]]
        if "momentum" in group:
            group["momentum"] = momentum
