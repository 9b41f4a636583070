"""The "optimizer" block of a DeepSpeed JSON, and how it meets the hyper-parameters: the block wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from yolods.config.hyper import OPTIMIZERS, RULES, Hyper, HyperRead
from yolods.config.values import Rule, check, flag, items, optional, real, shown
from yolods.errors import Faults, nearest

_ADAMS = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam")
_BETAS = items(real(0, 1, below=True), count=2, what="a pair [beta1, beta2] of numbers in [0, 1)")
_SWITCHES = optional(flag())
_EVERY: dict[str, Rule] = {
    "lr": RULES["lr0"],
    "weight_decay": RULES["weight_decay"],
    **dict.fromkeys(("maximize", "foreach", "capturable", "differentiable", "fused"), _SWITCHES),
}
_ADAM = {**_EVERY, "betas": _BETAS, "eps": real(0)}
_DEEPSPEED_ADAM = dict.fromkeys(("torch_adam", "adam_w_mode", "bias_correction", "fp32_optimizer_states"), _SWITCHES)
PARAMS: dict[str, dict[str, Rule]] = {
    "SGD": {**_EVERY, "momentum": RULES["momentum"], "dampening": real(0, 1), "nesterov": flag()},
    "RMSprop": {**_EVERY, "momentum": RULES["momentum"], "alpha": real(0, 1), "eps": real(0), "centered": flag()},
    "Adam": {**_ADAM, **_DEEPSPEED_ADAM, "amsgrad": flag()},
    "AdamW": {**_ADAM, **_DEEPSPEED_ADAM, "amsgrad": flag()},
    "Adamax": _ADAM,
    "NAdam": {**_ADAM, "momentum_decay": real(0), "decoupled_weight_decay": flag()},
    "RAdam": {**_ADAM, "decoupled_weight_decay": flag()},
}
"""What each optimizer takes under "params"."""


@dataclass(frozen=True)
class JsonOptimizer:
    """An optimizer that the JSON names."""

    name: str
    """Class in torch.optim."""
    arguments: tuple[tuple[str, Any], ...]
    """Its arguments as given, "auto" filled in; without DeepSpeed's own switches torch_adam, adam_w_mode and so on."""

    @property
    def params(self) -> dict[str, Any]:
        """The arguments by name; a fresh copy."""
        return dict(self.arguments)


def read_optimizer(block: Any, hyper: Hyper, where: str, faults: Faults) -> JsonOptimizer | None:
    """Read the block; None where there is none, or where it names no optimizer that is trained with here.

    Args:
        block: a mapping, or None.
        hyper: fills what is "auto" or missing: lr, momentum, betas, weight_decay.
        where: the JSON's name in messages.
    """
    if block is None:
        return None
    for key in block:
        if key not in ("type", "params", "legacy_fusion"):
            faults.add(f'{where}: "optimizer": unknown key "{key}"{nearest(key, ("type", "params"))}')
    known = [name for name in OPTIMIZERS if name != "auto"]
    given = str(block.get("type", ""))
    name = {name.lower(): name for name in known}.get(given.lower())
    if name is None:
        hint = f"{nearest(given, known)}; use one of {', '.join(known)}"
        faults.add(f'{where}: "optimizer": type {given!r} is not trained with here{hint}')
        return None
    params = _params(name, block.get("params") or {}, hyper, f'{where}: "optimizer".params', faults)
    # DeepSpeed's "Adam" is AdamW unless told otherwise: keys mean here what DeepSpeed says.
    if name == "Adam" and params.get("adam_w_mode") is not False:
        name = "AdamW"
    kept = {key: value for key, value in params.items() if key not in _DEEPSPEED_ADAM}
    return JsonOptimizer(name, tuple(kept.items()))


def _params(name: str, given: Any, hyper: Hyper, where: str, faults: Faults) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        faults.add(f"{where} is {shown(given)}: it has to be an object {{...}}")
        given = {}
    filled: dict[str, Any] = {"lr": hyper.lr0, "weight_decay": hyper.weight_decay}
    filled |= {"betas": (hyper.momentum, 0.999)} if name in _ADAMS else {"momentum": hyper.momentum}
    rules = PARAMS[name]
    for key, value in given.items():
        if key == "max_grad_norm":
            faults.add(f'{where}.max_grad_norm is not an argument of the optimizer: use "gradient_clipping": {value}')
        elif key not in rules:
            faults.add(f'{where}: {name} has no "{key}"{nearest(key, rules)}')
        elif value != "auto":
            good, parsed = check(rules[key], value, f"{where}.{key}", faults)
            filled |= {key: parsed} if good else {}
    return filled


def merge(
    read: HyperRead, optimizer: JsonOptimizer | None, where: str, faults: Faults
) -> tuple[Hyper, tuple[str, ...]]:
    """Let the JSON's optimizer win over hyper-parameters, unless the command line says something else.

    Returns:
        the hyper-parameters with the JSON's optimizer, lr0, momentum and weight_decay, and a line for each that a hyp
        file gave otherwise.
    """
    if optimizer is None:
        return read.hyper, ()
    params = optimizer.params
    momentum = params["betas"][0] if "betas" in params else params["momentum"]
    won = {"optimizer": optimizer.name, "lr0": params["lr"], "momentum": momentum}
    won["weight_decay"] = params["weight_decay"]
    notes = []
    for key, value in won.items():
        other = getattr(read.hyper, key)
        if other == value:
            continue
        if key in read.commanded:
            faults.add(
                f'{where}: "optimizer" gives {key} {shown(value)}, but {read.commanded[key]} says {shown(other)}; '
                'remove one of them, or write "auto" in the JSON'
            )
        elif key in read.filed:
            notes.append(f"{key} is {shown(value)} from {where}; {read.filed[key]} says {shown(other)}")
    return replace(read.hyper, **won), tuple(notes)
