"""The supported optimizers: one entry each, to check the configuration and build from.

To add an optimizer, add an entry to `OPTIMIZERS`, and write its class if torch lacks it. An entry
decides the names and arguments in flags and JSON, the arguments of parameter groups, whether
momentum is warmed up, and the kernel for host memory. It declares nothing about optimizer state:
checkpoints cut and join state tensors of a weight's shape together with the weights, and scalar
tensors, such as `step`, are the same on all ranks.
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
    """A CPU kernel that steps a GPU's optimizer states in host memory."""

    made_by: str
    """Its class, as `module:class`."""
    takes: tuple[str, ...]
    """Arguments that it supports."""
    arguments: Mapping[str, Any]
    """Fixed arguments that select this optimizer."""


@dataclass(frozen=True, kw_only=True)
class SupportedOptimizer:
    """One optimizer: its class, its arguments, and where it can run."""

    made_by: str
    """Its class, as `module:class`; imported when a run builds it. It must be element-wise: under
    ZeRO, ranks hold flat slices of weights, and stepping a slice must give the same as stepping the
    whole weight."""
    params: Mapping[str, Rule]
    """The keys that a JSON may contain under "params"."""
    arguments: Callable[[float], dict[str, Any]]
    """Converts the hyper-parameter `momentum` into default arguments. An argument named `momentum`
    is warmed up, as in ultralytics; the first of `betas` is not."""
    json_arguments: Mapping[str, Any] = field(default_factory=dict)
    """DeepSpeed's defaults, where they differ, for a JSON that names the optimizer without these
    arguments."""
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Extra arguments of a parameter group, by its name: weight, bn, bias."""
    on_host: HostKernel | None = None
    """Kernel for a GPU's states in host memory; None: torch steps them."""

    @property
    def warms_momentum(self) -> bool:
        """Whether its momentum is warmed up."""
        return "momentum" in self.arguments(0.9)

    @property
    def has_fused(self) -> bool:
        """Whether torch has a fused kernel for it."""
        return "fused" in self.params


def _momentum(value: float) -> dict[str, Any]:
    return {"momentum": value}


def _nesterov(value: float) -> dict[str, Any]:
    # torch refuses nesterov with momentum 0, although it would change nothing there.
    return {"momentum": value, "nesterov": value > 0}


def _betas(value: float) -> dict[str, Any]:
    return {"betas": (value, 0.999)}


DEEPSPEED_ADAM = dict.fromkeys(
    ("torch_adam", "adam_w_mode", "bias_correction", "fp32_optimizer_states"), flag()
)
"""Switches of DeepSpeed's Adam that torch's Adam lacks."""
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
    return HostKernel(
        made_by="deepspeed.ops.adam:DeepSpeedCPUAdam", takes=takes, arguments={"adamw_mode": adamw}
    )


OPTIMIZERS: dict[str, SupportedOptimizer] = {
    "SGD": SupportedOptimizer(
        made_by="torch.optim:SGD",
        params={
            **_EVERY,
            **_FUSED,
            "momentum": MOMENTUM,
            "dampening": real(0, 1),
            "nesterov": flag(),
        },
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
        made_by="torch.optim:RAdam",
        params={**_ADAM, "decoupled_weight_decay": flag()},
        arguments=_betas,
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
"""Name in flags and JSON, whose case is ignored -> the optimizer."""
