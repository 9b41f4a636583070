"""Checks a model yaml's modules and arguments against those of ultralytics."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from yolods.errors import Faults, nearest
from yolods.parsing.rules import (
    Rule,
    check,
    either,
    flag,
    items,
    one_of,
    optional,
    real,
    shown,
    whole,
)

if TYPE_CHECKING:
    from torch import nn

_COUNT, _PAD = whole(1), whole(0)
_COUNTS = either(_COUNT, items(_COUNT, what="a list of such numbers"))
_PADS = optional(either(_PAD, items(_PAD, what="a list of such numbers")))
_RATIO = real(0, above=True)
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("c2", "cm", "g", "n", "num_heads", "nh", "nc"), _COUNT),
    **dict.fromkeys(("k", "s", "d", "kernel_size", "stride", "dilation"), _COUNTS),
    **dict.fromkeys(("p", "padding"), _PADS),
    **dict.fromkeys(("e", "mlp_ratio"), _RATIO),
    **dict.fromkeys(("shortcut", "c3k", "attn", "lightconv", "a2", "residual", "is_first"), flag()),
    "size": optional(_COUNTS),
    "scale_factor": optional(either(_RATIO, items(_RATIO, what="a list of such numbers"))),
    "mode": one_of(
        "nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact"
    ),
    "align_corners": optional(flag()),
    "dimension": whole(0, 3),
}
"""Rules by argument name in ultralytics and torch; arguments of other names are not checked."""


def check_layers(layers: Mapping[str, Any], faults: Faults) -> None:
    """Refuse modules that ultralytics does not have, and arguments that a module does not accept.

    Args:
        layers: what `yolods.model.architecture.build.architecture` returns.
        faults: receives one line per module or argument, with the number of its layer.
    """
    for number, (_, _, module, arguments) in enumerate([*layers["backbone"], *layers["head"]]):
        kind = _module(module)
        if kind is None:
            from ultralytics.nn import modules

            known = nearest(module, modules.__all__)
            faults.add(
                f"{NOT_BUILT}: layer {number} is a '{module}', which ultralytics does not "
                f"have{known}"
            )
        elif takes := _takes(kind):
            _check_arguments(
                number, module, takes, [_meant(each, layers) for each in arguments], faults
            )


NOT_BUILT = "the model cannot be built"
"""Start of each of these messages."""


def failing_layer(layers: Mapping[str, Any]) -> str:
    """Find the layer that ultralytics cannot build.

    That is the first layer with which building fails, while all layers before it can be built.

    Returns:
        "layer 3 (Conv [64, 3, 2]): "; "" if all layers can be built.
    """
    from ultralytics.nn.tasks import parse_model

    all_layers = [*layers["backbone"], *layers["head"]]
    for number, (_, _, module, arguments) in enumerate(all_layers):
        head = deepcopy({**layers, "backbone": all_layers[: number + 1], "head": []})
        try:
            parse_model(head, ch=layers["channels"], verbose=False)
        # A module may raise any kind of exception.
        except Exception:
            return f"layer {number} ({module} {shown(arguments)}): "
    return ""


def _module(name: str) -> type[nn.Module] | None:
    """The class from which ultralytics makes a layer of this name; None if there is none."""
    from torch import nn
    from ultralytics.nn import tasks

    if name.startswith("torchvision.ops."):
        return nn.Module
    found = getattr(nn, name[3:], None) if name.startswith("nn.") else getattr(tasks, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _takes(kind: type[nn.Module]) -> dict[str, bool]:
    """A module's arguments in a yaml, in order -> whether each is required; {} if unknown.

    Arguments that ultralytics fills in are omitted: `n`, from the layer's repeats, and all of
    Detect's except the number of classes.
    """
    from ultralytics.nn.modules import Detect

    parameters = list(inspect.signature(kind.__init__).parameters.values())
    names = [parameter.name for parameter in parameters]
    if issubclass(kind, Detect):
        return {"nc": True} if kind is Detect else {}
    # For other modules, ultralytics has no fixed relation between yaml and signature.
    if not ({"c1", "dimension"} & {*names} or kind.__module__.startswith("torch.nn")):
        return {}
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind in collecting for parameter in parameters):
        return {}
    # The yaml gives its c1, unlike for all other modules.
    if kind.__name__ == "ResNetLayer":
        return {}
    filled = {"self", "in_channels" if kind.__name__ == "ConvTranspose2d" else "c1"}
    # ultralytics inserts the layer's repeats into the arguments of such modules.
    repeated = names[1:4] == ["c1", "c2", "n"] or kind.__name__ == "HGBlock"
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters
        if parameter.name not in (filled | {"n"} if repeated else filled)
    }


def _meant(argument: Any, layers: Mapping[str, Any]) -> Any:
    """An argument as ultralytics reads it.

    One of the yaml's own keys stands for its value, and other words for Python literals.
    """
    if not isinstance(argument, str):
        return argument
    if argument in ("nc", "scale", "reg_max") and argument in layers:
        return layers[argument]
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(argument)
    return argument


def _check_arguments(
    number: int, module: str, takes: Mapping[str, bool], given: list[Any], faults: Faults
) -> None:
    where = f"{NOT_BUILT}: layer {number} ({module})"
    names = list(takes)
    if lacking := [name for name in names[len(given) :] if takes[name]]:
        faults.add(f"{where} lacks {' and '.join(lacking)}: its arguments are [{', '.join(names)}]")
    if len(given) > len(names):
        faults.add(
            f"{where} has {len(given)} arguments, but takes {len(names)}: [{', '.join(names)}]"
        )
    for name, value in zip(names, given, strict=False):
        if name in _RULES:
            check(_RULES[name], value, f"{where}: its {name}", faults)
