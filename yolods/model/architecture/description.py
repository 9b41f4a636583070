"""Reads a user's model yaml and reports faults by layer number, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolods.errors import Faults, UserError
from yolods.parsing.rules import items, real, shown, whole
from yolods.parsing.yaml_file import NotYaml, parse_yaml

MOST_REPEATS = 1000
"""Most repeats of a layer, before the model's depth multiplies them."""

_REPEATS = whole(0, MOST_REPEATS)
_SCALE = items(
    real(0, above=True), count=3, what="[depth, width, most channels], three numbers above 0"
)


def read_description(path: Path) -> dict[str, Any]:
    """Read the yaml of a model.

    Returns:
        its keys, of which `backbone` and `head` are lists of layers, and `scale` names one of
        `scales`: the first one if the file has no `scale`, "" if it has no `scales` either.

    Raises:
        UserError: all faults, one line each.
    """
    where = f"--model {path}"
    try:
        description = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except NotYaml as error:
        line = f" line {error.line}" if error.line else ""
        raise UserError(f"{where}{line}: not valid yaml: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from None
    missing = [
        key
        for key in ("backbone", "head")
        if not isinstance(description, dict) or key not in description
    ]
    if missing:
        raise UserError(f"{where}: not a model yaml, it lacks {' and '.join(missing)}")
    faults = Faults()
    _check_layers(description, where, faults)
    _check_scales(description, where, faults)
    faults.raise_if_any()
    description.setdefault("scale", next(iter(description.get("scales") or ()), ""))
    return description


def _check_layers(description: dict[str, Any], where: str, faults: Faults) -> None:
    number = 0
    for part in ("backbone", "head"):
        if not isinstance(description[part], list):
            faults.add(
                f"{where}: {part} is {shown(description[part])}: it must be a list of layers"
            )
            # The numbers of all later layers depend on this list.
            return
        for layer in description[part]:
            if fault := _layer_fault(layer, number):
                faults.add(f"{where}: layer {number} ({part}) is {shown(layer)}: {fault}")
            number += 1


def _layer_fault(layer: Any, number: int) -> str:
    """What is wrong with a layer; "" if nothing is visible without ultralytics."""
    if not isinstance(layer, list) or len(layer) != 4:
        return "it must be [from, repeats, module, [arguments]]"
    sources, repeats, module, arguments = layer
    for source in sources if isinstance(sources, list) else [sources]:
        # YAML's true is an int in Python. -1 of layer 0 is the image.
        if (
            not isinstance(source, int)
            or isinstance(source, bool)
            or not -max(number, 1) <= source < number
        ):
            return f"its input is {shown(source)}, which is not an earlier layer"
    try:
        _REPEATS.parse(repeats)
    except (ValueError, OverflowError):
        return f"its repeats are {shown(repeats)}, but must be {_REPEATS.permitted}"
    if not isinstance(module, str):
        return f"its module is {shown(module)}, but must be a name"
    return (
        ""
        if isinstance(arguments, list)
        else f"its arguments are {shown(arguments)}, but must be a list"
    )


def _check_scales(description: dict[str, Any], where: str, faults: Faults) -> None:
    scales = description.get("scales") or {}
    if not isinstance(scales, dict):
        faults.add(
            f"{where}: scales is {shown(scales)}: it must be {{name: [depth, width, most "
            "channels]}"
        )
        return
    for name, scale in scales.items():
        try:
            _SCALE.parse(scale)
        except (ValueError, OverflowError):
            faults.add(f"{where}: scales.{name} is {shown(scale)}: it must be {_SCALE.permitted}")
    if scales and "scale" in description and description["scale"] not in scales:
        faults.add(
            f"{where}: scale is {shown(description['scale'])}, which is not among scales: "
            f"{', '.join(map(str, scales))}"
        )
