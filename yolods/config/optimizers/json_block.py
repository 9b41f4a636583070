"""The "optimizer" block of a DeepSpeed JSON, which overrides hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from yolods.config.hyper.hyperparameters import Hyper, HyperRead
from yolods.config.optimizers.supported import DEEPSPEED_ADAM, OPTIMIZERS
from yolods.config.optimizers.unsupported import why_untrained
from yolods.errors import Faults, nearest
from yolods.parsing.rules import check, shown

_NOT_TAKEN: dict[str, str] = {
    "max_grad_norm": 'is not an argument of the optimizer: use "gradient_clipping"',
    "differentiable": "is not supported: no gradient flows through a step",
}
_FIXED: dict[str, tuple[bool, str]] = {
    "bias_correction": (True, "torch's Adam always corrects its moments; remove it"),
    "fp32_optimizer_states": (True, "checkpoints store the moments in fp32; remove it"),
}
"""Switches with one permitted value -> (that value, the reason)."""


@dataclass(frozen=True)
class JsonOptimizer:
    """An optimizer that the JSON names."""

    name: str
    """A name in `OPTIMIZERS`."""
    arguments: tuple[tuple[str, Any], ...]
    """Its arguments with "auto" filled in, without the switches in `DEEPSPEED_ADAM`."""
    fixes_decay: bool = False
    """Whether the JSON gives weight_decay as a number, which is then used unchanged; else it is
    scaled to the batch."""

    @property
    def params(self) -> dict[str, Any]:
        """The arguments by name; a fresh copy."""
        return dict(self.arguments)


def read_optimizer(block: Any, hyper: Hyper, where: str, faults: Faults) -> JsonOptimizer | None:
    """Read the block; None if there is none or its optimizer is not supported.

    Args:
        block: a mapping, or None.
        hyper: fills values that are "auto" or missing: lr, momentum, betas, weight_decay.
        where: the JSON's name in messages.
    """
    if block is None:
        return None
    block = {key: value for key, value in block.items() if value is not None and value != "auto"}
    where = f'{where}: "optimizer"'
    for key in block:
        if key not in ("type", "params", "legacy_fusion"):
            faults.add(f'{where}: unknown key "{key}"{nearest(key, ("type", "params"))}')
    if "legacy_fusion" in block:
        faults.add(f"{where}.legacy_fusion is not supported: it belongs to Lamb; remove it")
    name = _name(block.get("type", ""), where, faults)
    if name is None:
        return None
    params = _params(name, block.get("params") or {}, hyper, f"{where}.params", faults)
    # In DeepSpeed, "Adam" means AdamW unless adam_w_mode is false. A key of its JSON keeps
    # DeepSpeed's meaning here.
    if name == "Adam" and params.get("adam_w_mode") is not False:
        name = "AdamW"
    kept = {key: value for key, value in params.items() if key not in DEEPSPEED_ADAM}
    return JsonOptimizer(
        name, tuple(kept.items()), fixes_decay=_is_given(block.get("params"), "weight_decay")
    )


def _is_given(params: Any, key: str) -> bool:
    """Whether a key has a value; null and "auto" mean a missing key."""
    return isinstance(params, Mapping) and params.get(key) not in ("auto", None)


def _name(given: Any, where: str, faults: Faults) -> str | None:
    """The spelling in `OPTIMIZERS`, or None and a fault with the reason."""
    lower, why = str(given).lower(), why_untrained(given)
    name = {name.lower(): name for name in OPTIMIZERS}.get(lower)
    if name is None and why is not None:
        faults.add(f"{where}: type {given!r} is not supported, because {why}")
    elif name is None:
        hint = f"{nearest(lower, OPTIMIZERS)}; use one of {', '.join(OPTIMIZERS)}"
        faults.add(f"{where}: type {given!r} is not supported{hint}")
    return name


def _params(name: str, given: Any, hyper: Hyper, where: str, faults: Faults) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        faults.add(f"{where} is {shown(given)}: it must be an object {{...}}")
        given = {}
    entry = OPTIMIZERS[name]
    # Defaults first, so that the checks below see the values that the optimizer gets.
    filled: dict[str, Any] = {"lr": hyper.lr0, "weight_decay": hyper.weight_decay}
    filled |= {**entry.arguments(hyper.momentum), **entry.json_arguments}
    rules = entry.params
    for key, value in given.items():
        if key in _NOT_TAKEN:
            if value:
                faults.add(
                    f"{where}.{key} "
                    f"{_NOT_TAKEN[key]}{f': {value}' if key == 'max_grad_norm' else ''}"
                )
        elif key not in rules:
            faults.add(f'{where}: {name} has no "{key}"{nearest(key, rules)}')
        elif value not in ("auto", None):  # both mean a missing key
            good, parsed = check(rules[key], value, f"{where}.{key}", faults)
            filled |= {key: parsed} if good else {}
    _check_params(name, filled, where, faults)
    return filled


def _check_params(name: str, params: Mapping[str, Any], where: str, faults: Faults) -> None:
    """Refuse arguments that torch's constructors refuse or that have only one permitted value."""
    for key, (value, reason) in _FIXED.items():
        if params.get(key, value) is not value:
            faults.add(f"{where}.{key} {shown(params[key])} is not supported: {reason}")
    if params.get("foreach") and params.get("fused"):
        faults.add(
            f"{where}: foreach and fused are both true; keep one, or omit both to get the fastest"
        )
    if params.get("nesterov") and not params["momentum"]:
        faults.add(
            f"{where}: nesterov needs momentum, but momentum is 0; omit nesterov, or set momentum"
        )
    if params.get("nesterov") and params.get("dampening"):
        faults.add(
            f"{where}: nesterov with dampening {params['dampening']:g}: they exclude each other; "
            "keep one"
        )
    if name == "AdamW" and params.get("adam_w_mode") is False:
        faults.add(
            f'{where}: adam_w_mode false with type "AdamW": write "Adam" for Adam, or omit '
            "adam_w_mode"
        )


def merge_optimizer(
    read: HyperRead, optimizer: JsonOptimizer | None, where: str, faults: Faults
) -> tuple[Hyper, tuple[str, ...]]:
    """Let the JSON's optimizer override hyper-parameters, but not the command line.

    Returns:
        the hyper-parameters with the JSON's optimizer, lr0, momentum and weight_decay, and one line
        for each value of a hyp file that was overridden.
    """
    if optimizer is None:
        return read.hyper, ()
    params = optimizer.params
    momentum = params["betas"][0] if "betas" in params else params["momentum"]
    # The hyper-parameters are changed as well, because warm-up and schedule read lr0 and momentum
    # from them.
    won = {"optimizer": optimizer.name, "lr0": params["lr"], "momentum": momentum}
    won["weight_decay"] = params["weight_decay"]
    notes = []
    for key, value in won.items():
        other = getattr(read.hyper, key)
        if other == value:
            continue
        if key in read.commanded:
            faults.add(
                f'{where}: "optimizer" sets {key} to {shown(value)}, but {read.commanded[key]} is '
                f'{shown(other)}; remove one of them, or write "auto" in the JSON'
            )
        elif key in read.filed:
            notes.append(
                f"{key} is {shown(value)} from {where}, which overrides {shown(other)} from "
                f"{read.filed[key]}"
            )
    return replace(read.hyper, **won), tuple(notes)
