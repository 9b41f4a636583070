"""Which parameters are frozen: the first N layers, or listed ones, as in ultralytics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from yolods.errors import Faults, nearest

Frozen = int | Sequence[int | str] | None
"""The value of `freeze`: the first N layers; layer numbers and names ("24.cv2"); or nothing."""
ALWAYS_FROZEN = ".dfl"
"""Detect's fixed bins, which are never trained."""


def marks_of(frozen: Frozen) -> list[str]:
    """Substrings of `name + "."` that mark a parameter or module as frozen.

    A name may start with the model's own `model.`, and may be as specific as a single parameter.
    """
    layers = range(frozen) if isinstance(frozen, int) else (frozen or [])
    return [f"model.{str(layer).removeprefix('model.').rstrip('.')}." for layer in layers] + [
        ALWAYS_FROZEN
    ]


def is_frozen(name: str, marks: Iterable[str]) -> bool:
    """Whether the parameter or module `name` is frozen."""
    # With the dot at the end, "model.2." does not match layer 24.
    return any(mark in f"{name}." for mark in marks)


def check_frozen(
    frozen: Frozen, names: Iterable[str], layers: dict[str, Any], model: str, faults: Faults
) -> None:
    """Refuse words that would freeze nothing, or a choice that would freeze everything.

    Args:
        frozen: the value of `freeze`.
        names: names of the model's parameters.
        layers: the model's yaml dictionary.
        model: name of the model in messages.
        faults: receives one line for each word that matches no parameter.
    """
    names = list(names)
    count, backbone = len(layers["backbone"]) + len(layers["head"]), len(layers["backbone"])
    listed = [] if frozen is None or isinstance(frozen, int) else list(frozen)
    # Not strict: `marks_of` has one more mark, for Detect's bins.
    for word, mark in zip(listed, marks_of(frozen), strict=False):
        if any(mark in f"{name}." for name in names):
            continue
        known = {part for name in names for part in _modules(name)}
        hints = {
            "backbone": f"; the backbone is the first {backbone} layers: --freeze {backbone}",
            "head": f"; the head is the layers {backbone} to {count - 1}",
        }
        close = hints.get(str(word), nearest(str(word), known))
        faults.add(
            f"freeze: {word!r} names no layer or module of {model} that has weights{close}; layers "
            f"are 0 to {count - 1}, modules are written as {count - 1}.cv2"
        )
    marks = marks_of(frozen)
    if all(is_frozen(name, marks) for name in names):
        faults.add(
            f"freeze={frozen if isinstance(frozen, int) else listed}: nothing would be left to "
            f"train, {model} has {count} layers; freeze fewer"
        )


def _modules(name: str) -> Iterable[str]:
    """A parameter's modules as `freeze` names them: 24 and 24.cv2 for `model.24.cv2.weight`."""
    parts = name.removeprefix("model.").split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def told(frozen: Frozen, names: Iterable[str]) -> str | None:
    """A line that says how much is frozen in addition to Detect's bins; None without `freeze`."""
    if frozen is None:
        return None
    names = [name for name in names if ALWAYS_FROZEN not in name]
    # Without the last mark, Detect's bins, which are always frozen.
    marks = marks_of(frozen)[:-1]
    held = [name for name in names if is_frozen(name, marks)]
    touched, layers = {name.split(".")[1] for name in held}, {name.split(".")[1] for name in names}
    words = frozen if isinstance(frozen, int) else " ".join(map(str, frozen))
    hint = " (0 means the first 0 layers; layer 0 alone is [0])" if frozen == 0 else ""
    return (
        f"freeze {words}: {len(held)} of {len(names)} weight tensors are not trained, in "
        f"{len(touched)} of {len(layers)} layers that have weights{hint}"
    )
