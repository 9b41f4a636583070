"""Words of a Python call as flags of the command line."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolods.config import foreign
from yolods.config.flags import add_train_arguments
from yolods.config.hyper.hyperparameters import RULES
from yolods.errors import Faults, nearest
from yolods.launch.args import add_launch_arguments, add_restart_argument
from yolods.parsing.command_line import FlagParser

_BY_HAND = ("no_ssh", "node_rank")
"""Flags of a start that a person makes on every host."""


def flags_of(words: Mapping[str, Any]) -> list[str]:
    """The flags of `yolods launch train` for these words; None means not given.

    A hyper-parameter may be a word by itself (`mosaic=0.5`), or be in `set={"mosaic": 0.5}`.

    Raises:
        UserError: one line for each word that `train` does not have, with the nearest that it has,
            and for each value that a flag cannot spell.
    """
    parser = FlagParser(prog="train", description="", foreign=foreign, add_help=False)
    for add in (add_train_arguments, add_launch_arguments, add_restart_argument):
        add(parser)
    known = {_word(name): (name, flag) for flag in parser.shown() for name in flag.option_strings}
    faults, flags = Faults(), list[str]()
    for word, given in words.items():
        value, made = _plain(given), list[str]()
        if value is None:
            continue
        if word in _BY_HAND:
            faults.add(f"{word}: a start on every host is made with the command line")
        elif word in RULES:
            made = ["--set", f"{word}={_spelt(value)}"]
        elif word in known:
            made = _flag(word, *known[word], value, faults)
        else:
            faults.add(_unknown(word, parser, [*known, *RULES]))
        if any("\0" in flag for flag in made):
            faults.add(f"{word} has a NUL character, which no command line can hold")
        flags += made
    faults.raise_if_any()
    return flags


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, such as those of a sweep, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _word(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _flag(word: str, name: str, action: argparse.Action, value: Any, faults: Faults) -> list[str]:
    """The flag for one word."""
    if word == "set":
        if not isinstance(value, str | Iterable):
            faults.add(f"set is {value!r}: it must be a dict, such as {{'lr0': 0.01}}")
            return []
        return [part for pair in _pairs(value) for part in (name, pair)]
    if action.nargs in (0, "?") and isinstance(value, bool):
        return [name] if value else []
    if action.nargs == 0:
        faults.add(f"{word} is {value!r}: it must be True or False")
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = ",".join(map(str, value))
    if not isinstance(value, str | int | float | Path):
        faults.add(f"{word} is a {type(value).__name__}: it must be text or a number")
        return []
    # Joined by "=", so that a value that begins with a dash is not taken for a flag.
    return [f"{name}={value}"]


def _pairs(value: Any) -> list[str]:
    """The hyper-parameters in `set`, which may be a mapping, one `key=value`, or a list of them."""
    if isinstance(value, Mapping):
        return [f"{key}={_spelt(each)}" for key, each in value.items()]
    return [value] if isinstance(value, str) else list(map(str, value))


def _spelt(value: Any) -> str:
    """A value in YAML's spelling, as `--set` reads it."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value, default=_as_json)


def _as_json(value: Any) -> Any:
    """What JSON does not know: a number of numpy, a range or a set as a list, and a path."""
    if (plain := _plain(value)) is not value:
        return plain
    return list(value) if isinstance(value, range | set | frozenset) else str(value)


def _unknown(word: str, parser: FlagParser, known: Sequence[str]) -> str:
    """What to say of a word that `train` does not have."""
    if told := parser.why_not(f"--{word}"):
        text = _as_words(told)
        return text if text.startswith(f"{word} ") else f"{word}: {text}"
    return f"{word}: unknown word{nearest(word, known)}; docs/configuration.md lists them"


def _as_words(text: str) -> str:
    """Advice about flags as advice about words: mosaic=0.5 for --set mosaic=0.5."""
    text = re.sub(r"--set (?=\w+=)", "", text)
    return re.sub(r"--([a-z][a-z_-]*)", lambda found: found[1].replace("-", "_"), text)
