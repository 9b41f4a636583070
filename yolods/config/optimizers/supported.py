"""Optimizers that are trained with: one entry each, which configuration checks by and a run builds from.

Another optimizer is another entry of `OPTIMIZERS`, and its class where torch does not have it. What follows from an
entry: the names and arguments that flags and JSON take, the groups' arguments, whether a momentum is warmed up, the
kernel on the host. Nothing is declared about its state: tensors of a weight's shape are cut and joined with the weights
in checkpoints, and tensors of no dimension, such as `step`, are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from yolods.parsing.rules import Rule, flag, items, real

LR = real(0, 1, above=True)
MOMENTUM = real(0, 1, below=True)
WEIGHT_DECAY = real(0, 1)


@dataclass(frozen=True, kw_only=True)
class HostKernel:
    """A kernel that steps optimizer states in host memory beside a GPU."""

    made_by: str
    """Its class, as `module:class`."""
    takes: tuple[str, ...]
    """Arguments that it knows."""
    arguments: Mapping[str, Any]
    """Further ones that make it this optimizer."""


@dataclass(frozen=True, kw_only=True)
class SupportedOptimizer:
    """What has to be known of an optimizer."""

    made_by: str
    """Its class, as `module:class`; imported when a run builds it. It has to step flat pieces of weights as it would
    step the whole ones, because these are what ranks hold under ZeRO."""
    params: Mapping[str, Rule]
    """What a JSON may give under "params"."""
    arguments: Callable[[float], dict[str, Any]]
    """Makes the arguments that the hyper-parameter `momentum` becomes, for a run that says no more. One named
    `momentum` is warmed up, as in ultralytics; the first of `betas` is not."""
    json_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are different where a JSON names the optimizer and leaves them out: DeepSpeed's defaults."""
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further arguments of a group of parameters, by its name: weight, bn, bias."""
    on_host: HostKernel | None = None
    """Steps it where states of a GPU are in host memory; None: torch does."""

    @property
    def warms_momentum(self) -> bool:
        """Whether it has a momentum that is warmed up."""
        return "momentum" in self.arguments(0.9)

    @property
    def has_fused(self) -> bool:
        """Whether torch has a fused kernel for it."""
        return "fused" in self.params


def _momentum(value: float) -> dict[str, Any]:
    return {"momentum": value}


def _nesterov(value: float) -> dict[str, Any]:
    # torch refuses Nesterov's without a momentum, where both are the same.
    return {"momentum": value, "nesterov": value > 0}


def _betas(value: float) -> dict[str, Any]:
    return {"betas": (value, 0.999)}


DEEPSPEED_ADAM = dict.fromkeys(("torch_adam", "adam_w_mode", "bias_correction", "fp32_optimizer_states"), flag())
"""Switches of DeepSpeed's Adam, which torch's has not."""
_EVERY: dict[str, Rule] = {
    "lr": LR,
    "weight_decay": WEIGHT_DECAY,
    **dict.fromkeys(("maximize", "foreach"), flag()),
}
_FUSED = {"fused": flag()}
_CAPTURABLE = {"capturable": flag()}
_EPS = {"eps": real(0, above=True)}
_PAIR = items(real(0, 1, below=True), count=2, what="a pair [beta1, beta2] of numbers in [0, 1)")
_ADAM = {**_EVERY, **_CAPTURABLE, **_EPS, "betas": _PAIR}
_ADAMW = {**_ADAM, **_FUSED, **DEEPSPEED_ADAM, "amsgrad": flag()}


def _cpu_adam(*, adamw: bool) -> HostKernel:
    takes = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    return HostKernel(made_by="deepspeed.ops.adam:DeepSpeedCPUAdam", takes=takes, arguments={"adamw_mode": adamw})


OPTIMIZERS: dict[str, SupportedOptimizer] = {
    "SGD": SupportedOptimizer(
        made_by="torch.optim:SGD",
        params={**_EVERY, **_FUSED, "momentum": MOMENTUM, "dampening": real(0, 1), "nesterov": flag()},
        arguments=_nesterov,
        json_arguments={"nesterov": False},
    ),
    "Adam": SupportedOptimizer(
        made_by="torch.optim:Adam", params=_ADAMW, arguments=_betas, on_host=_cpu_adam(adamw=False)
    ),
    "AdamW": SupportedOptimizer(
        made_by="torch.optim:AdamW", params=_ADAMW, arguments=_betas, on_host=_cpu_adam(adamw=True)
    ),
    "Adamax": SupportedOptimizer(made_by="torch.optim:Adamax", params=_ADAM, arguments=_betas),
    "NAdam": SupportedOptimizer(
        made_by="torch.optim:NAdam",
        params={**_ADAM, "momentum_decay": real(0), "decoupled_weight_decay": flag()},
        arguments=_betas,
    ),
    "RAdam": SupportedOptimizer(
        made_by="torch.optim:RAdam", params={**_ADAM, "decoupled_weight_decay": flag()}, arguments=_betas
    ),
    "RMSprop": SupportedOptimizer(
        made_by="torch.optim:RMSprop",
        params={
            **_EVERY,
            **_CAPTURABLE,
            **_EPS,
            "momentum": MOMENTUM,
            "alpha": real(0, 1, below=True),
            "centered": flag(),
        },
        arguments=_momentum,
    ),
}
"""By the name that flags and JSON give them, in upper or lower case."""
