"""The trained classes: their names, and the comparison of two lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from yolods.config import Hyper
    from yolods.data.spec import DataSpec

SHOWN = 10
"""Maximum number of names per list in a message."""

Difference = Literal["", "count", "order", "names"]
"""`count`: a class head for one does not fit the other. `order`: a name in both has another id.
`names`: no name has moved, but some ids have another name: another spelling, or another class."""


def class_names(spec: DataSpec, hyper: Hyper) -> tuple[str, ...]:
    """The names of the trained classes, in the order of their ids."""
    return ("item",) if hyper.single_cls else spec.names


def difference(one: Sequence[str], other: Sequence[str]) -> Difference:
    """The most serious difference between two lists of class names; "" if they are equal."""
    if len(one) != len(other):
        return "count"
    if list(one) == list(other):
        return ""
    return (
        "order"
        if any(name in other and other[place] != name for place, name in enumerate(one))
        else "names"
    )


def both(one: Sequence[str], other: Sequence[str]) -> tuple[str, str]:
    """The two lists for a message: complete if they are short, otherwise the first differences."""
    if max(len(one), len(other)) <= SHOWN:
        return _listed(dict(enumerate(one)), len(one)), _listed(dict(enumerate(other)), len(other))
    apart = [
        place
        for place in range(max(len(one), len(other)))
        if one[place : place + 1] != other[place : place + 1]
    ]
    return tuple(  # type: ignore[return-value]
        _listed({place: names[place] for place in apart if place < len(names)}, len(names))
        for names in (one, other)
    )


def _listed(names: dict[int, str], count: int) -> str:
    """A list for a message, such as "3 classes (0 cat, 1 dog, 2 cow)", with up to SHOWN names."""
    shown = [f"{place} {name}" for place, name in names.items()][:SHOWN]
    more = ["..."] if len(shown) < count else []
    return f"{count} class{'es' * (count != 1)} ({', '.join(shown + more)})"
