"""Class names: as a data yaml gives them, as a run trains them, and compared with other names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from yolods.errors import Faults, UserError
from yolods.parsing.rules import is_count, shown

if TYPE_CHECKING:
    from yolods.config import Hyper

SHOWN = 10
"""Maximum number of names per list in a message."""

Difference = Literal["", "count", "order", "names"]
"""`count`: a class head for one does not fit the other. `order`: a name in both has another id.
`names`: no name has moved, but some ids have another name: another spelling, or another class."""


def class_names(names: tuple[str, ...], hyper: Hyper) -> tuple[str, ...]:
    """The names of the trained classes, in the order of their ids.

    Args:
        names: those of the data yaml.
    """
    return ("item",) if hyper.single_cls else names


def check_classes(names: Sequence[str], where: object, classes: Iterable[int] | None) -> None:
    """Refuse ids in `classes` that no class has.

    Args:
        names: class names in the order of their ids.
        where: the source of the names, for the message.
        classes: ids of the classes to keep; None: all.

    Raises:
        UserError: there is such an id.
    """
    if foreign := [each for each in classes or () if each >= len(names)]:
        raise UserError(
            f"classes: {', '.join(map(str, foreign))} is no class of {where}, which names "
            f"{len(names)} (ids 0 to {len(names) - 1})"
        )


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


def read_names(data: dict[str, Any], faults: Faults) -> tuple[str, ...]:
    """The class names of a data yaml's content; of `nc` alone, class_0 and so on."""
    names, nc = data.get("names"), data.get("nc")
    if nc is not None and not is_count(nc):
        faults.add(f"nc: {nc!r} is not a number of classes")
        nc = None
    if names is None:
        if nc is None:
            faults.add("names: missing; list the class names, as in `names: [cat, dog]`")
        return tuple(f"class_{i}" for i in range(nc or 0))
    if names in ([], {}):
        faults.add("names: is empty; at least one class is needed")
        return ()
    if isinstance(names, dict):
        names = _from_mapping(names, faults)
    elif not isinstance(names, list):
        faults.add(
            f"names: must be a list or a mapping from class id to name, not {type(names).__name__}"
        )
        return ()
    if names and nc is not None and len(names) != nc:
        faults.add(
            f"names and nc disagree: {len(names)} names, nc: {nc}; remove nc, or correct one of "
            "them"
        )
    for place, name in enumerate(names):
        if fault := _name_fault(name):
            faults.add(f"names: class {place} is {shown(name)}: {fault}")
    return tuple(str(name) for name in names)


def _name_fault(name: Any) -> str:
    """Why this is not a class name, with the remedy; "" if it is one. Numbers are allowed."""
    if isinstance(name, bool):
        return "YAML reads yes, no, on and off as true and false; put the name in quotes"
    if not isinstance(name, str | int | float):
        return f"a name must be text, not {type(name).__name__}; put it in quotes"
    # Tables and file names contain these names.
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in str(name)):
        return "a name must be one line without control characters"
    return ""


def _from_mapping(names: dict[Any, Any], faults: Faults) -> list[Any]:
    strange = [key for key in names if not _is_id(key)]
    if strange:
        faults.add(f"names: keys must be class ids 0 to {len(names) - 1}, found {strange[0]!r}")
        return []
    numbered = {int(key): name for key, name in names.items()}
    if len(numbered) < len(names):
        faults.add("names: an id occurs twice, with and without quotes; keep one")
        return []
    expected = range(len(names))
    if sorted(numbered) != list(expected):
        absent = [str(i) for i in expected if i not in numbered]
        extra = [str(i) for i in sorted(numbered) if i not in expected]
        detail = "; ".join(
            f"{word} {', '.join(ids[:5])}"
            for word, ids in (("without", absent), ("not expected:", extra))
            if ids
        )
        faults.add(
            f"names: {len(names)} classes need the ids 0 to {max(len(names) - 1, 0)} "
            f"({detail or 'none given'})"
        )
        return []
    return [numbered[i] for i in expected]


def _is_id(key: Any) -> bool:
    return (
        key.isdecimal()
        if isinstance(key, str)
        else isinstance(key, int) and not isinstance(key, bool)
    )
