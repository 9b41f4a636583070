"""Rules for single settings: the type, the range, and the message when a value is not permitted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from yolods.errors import Faults, nearest


@dataclasses.dataclass(frozen=True)
class Rule:
    """The permitted values of one setting."""

    permitted: str
    """Completes the sentence "it must be ..."."""
    parse: Callable[[Any], Any]
    """Returns the value in the setting's own type; raises ValueError if it is not permitted."""


Reader = Callable[[Any, str, Faults], Any]
"""Reads a nested block, from its value, its name in messages, and the faults to add to."""

COUNTABLE, ADDRESSABLE = 2**31 - 1, 2**63 - 1
"""Largest count (steps, images, ranks), and largest number of bytes or elements, that the libraries
can represent."""


class _TooLarge(ValueError):
    """A number of the right type that is too large to represent."""

    def __init__(self, most: int) -> None:
        super().__init__(f"at most {most}")


def setting(default: Any, rule: Rule) -> Any:
    """A dataclass field with a default and a rule."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def real(
    low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Rule:
    """A finite number in an interval. `above` excludes the lower end, `below` the upper end."""

    def parse(value: Any) -> float:
        # YAML 1.1 requires a dot in a number and reads 1e-3 as text; users mean the number.
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        in_low = number > low if above else number >= low
        in_high = number < high if below else number <= high
        if not (math.isfinite(number) and in_low and in_high):
            raise ValueError
        return number

    return Rule(f"a number {_interval(low, high, above, below)}".rstrip(), parse)


def _interval(low: float, high: float, above: bool, below: bool) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f"{'above' if above else 'of at least'} {low:g}"
    return f"in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"


def whole(low: int = 0, high: int | None = None, *, most: int = COUNTABLE) -> Rule:
    """An integer of at least `low`, and at most `high` if given. 3.0 counts as 3.

    `most` is the limit without `high`; the message mentions it only for numbers above it.
    """

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise ValueError
        if value < low or (high is not None and value > high):
            raise ValueError
        if high is None and value > most:
            raise _TooLarge(most)
        return int(value)

    return Rule(
        f"a whole number of at least {low}"
        if high is None
        else f"a whole number in [{low}, {high}]",
        parse,
    )


def flag() -> Rule:
    """True or false; 0, 1 and "yes" are not permitted."""

    def parse(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Rule("true or false", parse)


def only_false(permitted: str) -> Rule:
    """Only false.

    Args:
        permitted: `false` and the reason, for the sentence "it must be ...".
    """

    def parse(value: Any) -> bool:
        if value is not False:
            raise ValueError
        return value

    return Rule(permitted, parse)


def text() -> Rule:
    """A string that is not empty."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        return value

    return Rule("text", parse)


def one_of(*choices: str) -> Rule:
    """One of several names, ignoring case; the value becomes the spelling in `choices`."""

    def parse(value: Any) -> str:
        by_lower = {choice.lower(): choice for choice in choices}
        if not isinstance(value, str) or value.lower() not in by_lower:
            raise ValueError
        return by_lower[value.lower()]

    return Rule(f"one of {', '.join(choices)}", parse)


def optional(rule: Rule) -> Rule:
    """`rule`, or nothing (YAML's empty value, JSON's null)."""

    def parse(value: Any) -> Any:
        return None if value is None else rule.parse(value)

    return Rule(f"{rule.permitted}, or empty", parse)


def either(*rules: Rule) -> Rule:
    """Any of the rules; the first that permits the value determines its type."""

    def parse(value: Any) -> Any:
        for rule in rules:
            try:
                return rule.parse(value)
            except (ValueError, OverflowError):
                continue
        raise ValueError

    return Rule(", or ".join(rule.permitted for rule in rules), parse)


def items(rule: Rule, *, count: int | None = None, what: str) -> Rule:
    """A non-empty list (of exactly `count` items, if given) of values that `rule` permits; becomes
    a tuple."""

    def parse(value: Any) -> tuple[Any, ...]:
        if (
            not isinstance(value, list | tuple)
            or not value
            or (count is not None and len(value) != count)
        ):
            raise ValueError
        return tuple(rule.parse(item) for item in value)

    return Rule(what, parse)


def single(rule: Rule) -> Rule:
    """A single value that means a list of one; becomes a tuple."""
    return Rule(rule.permitted, lambda value: (rule.parse(value),))


def check(rule: Rule, value: Any, where: str, faults: Faults) -> tuple[bool, Any]:
    """Apply a rule to a value that a user gave.

    Args:
        where: source and key, as shown to the user, for example "hyp.yaml line 3: lr0".

    Returns:
        (True, the value in the setting's own type), or (False, None) and a fault added.
    """
    try:
        return True, rule.parse(value)
    except (ValueError, OverflowError) as error:
        limit = f", and {error}" if isinstance(error, _TooLarge) else ""
        faults.add(f"{where} is {shown(value)}: it must be {rule.permitted}{limit}")
        return False, None


def is_count(value: object) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def shown(value: Any) -> str:
    """A value for a message: at most 60 characters, JSON's booleans, "empty" for None."""
    if value is None or isinstance(value, bool):
        return {None: "empty", True: "true", False: "false"}[value]
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


def read_block(kind: type, block: Any, where: str, faults: Faults) -> Any:
    """Fill a dataclass from a mapping that a user wrote.

    Args:
        kind: the frozen dataclass to make; every field has a default, and has a rule or is such a
            dataclass itself. A class with a classmethod `read(block, where, faults)` is made by
            that.
        block: the value found there.
        where: the block's name in messages, for example 'ds.json: "yolods"'.

    Returns:
        an instance of `kind`; a faulty setting has its default, and a fault is added.
    """
    fields = dataclasses.fields(kind)
    # A field without a rule is a nested dataclass, whose class is its default factory.
    known = {
        field.name: field.metadata.get("rule") or _reader(field.default_factory) for field in fields
    }
    return kind(**read_settings(known, block, where, faults))


def _reader(kind: Any) -> Reader:
    return getattr(kind, "read", None) or partial(read_block, kind)


def read_settings(
    known: Mapping[str, Rule | Reader], block: Any, where: str, faults: Faults
) -> dict[str, Any]:
    """Check a mapping that a user wrote.

    Args:
        known: each setting's rule, or the reader of a nested block.
        block: the value found there; null and "auto" mean a missing key.
        where: as for `read_block`.

    Returns:
        the permitted values by key; a fault is added for each other one.
    """
    if not isinstance(block, Mapping):
        faults.add(f"{where} is {shown(block)}: it must be an object of settings, {{...}}")
        return {}
    values: dict[str, Any] = {}
    # null and "auto" are skipped before the rules, which would otherwise all have to permit them.
    for key, value in block.items():
        if key not in known:
            faults.add(
                f"{where}: unknown key '{key}'{nearest(key, known)}; known: {', '.join(known)}"
            )
        elif value is None or value == "auto":
            continue
        elif isinstance(rule := known[key], Rule):
            good, parsed = check(rule, value, f"{where}.{key}", faults)
            values |= {key: parsed} if good else {}
        else:
            values[key] = rule(value, f"{where}.{key}", faults)
    return values
