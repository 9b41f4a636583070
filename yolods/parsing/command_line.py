"""Reads the words of a command line: every fault of it at once, each with what the word would be called here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from yolods.errors import UserError, nearest
from yolods.system.streams import show


class RefusedFlag(UserError):
    """A flag that users of other trainers may type, answered with what to do."""

    def __init__(self, flag: str, remedy: str) -> None:
        super().__init__(f"{flag} is not taken: {remedy}")
        self.flag = flag


class FlagNames:
    """Stands where functions add arguments to a parser, and notes what the flags are called."""

    def __init__(self, *additions: Callable[[Any], None]) -> None:
        """
        Args:
            additions: functions that add arguments to the parser that they are given.
        """
        self.names: list[str] = []
        """Every spelling with its dashes, in the order in which they were added."""
        for add in additions:
            add(self)

    def add_argument(self, *names: str, **_: Any) -> None:
        """As a parser's."""
        self.names += names

    def add_argument_group(self, *_: Any, **__: Any) -> FlagNames:
        """As a parser's; the names of a group count as all others."""
        return self


class FlagParser(argparse.ArgumentParser):
    """argparse that collects faults instead of leaving at the first, and takes `-` and `_` in a flag for the same."""

    def __init__(
        self,
        *,
        prog: str,
        description: str,
        foreign: Callable[[str], str | None] = lambda _: None,
        add_help: bool = True,
    ) -> None:
        """
        Args:
            foreign: of a flag's name with underscores and without dashes, what to write instead of it; None where
                nothing is known of it.
        """
        super().__init__(prog=prog, description=description, allow_abbrev=False, exit_on_error=False, add_help=add_help)
        self._foreign = foreign

    def error(self, message: str) -> None:  # type: ignore[override]
        """argparse's own way out, which would print a usage and leave."""
        raise argparse.ArgumentError(None, message)

    def print_help(self, file: Any = None) -> None:
        """Raises UserError where it does not reach the screen."""
        show(self.format_help().rstrip())

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """What the words say; `faults` in it holds a line for each fault. Flags with a fault count as not given."""
        found, rest, faults = self.read_known(words)
        found.faults = (*faults, *self._unknown(rest))
        return found

    def read_known(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
        """What the words say, those of them that are none here, and a line for each fault of the others."""
        left, faults = [self._spelt(word) for word in words], list[str]()
        while (place := self._empty_at(left)) is not None:
            faults.append(f"{left[place].partition('=')[0]} is empty: is a variable of the shell not set?")
            left = _without(left, place)
        while True:
            try:
                found, rest = self.parse_known_args(left)
                break
            except RefusedFlag as refused:
                faults.append(str(refused))
                left = _without(left, _place(left, [refused.flag]))
            except argparse.ArgumentError as fault:
                place = _place(left, (fault.argument_name or "").split("/"))
                if place is None:  # of all words together, as where a positional one is missing
                    found, rest = self._nothing_given(), []
                    faults.append(f"{self.prog}: {fault.message}")
                    break
                faults.append(f"{left[place].partition('=')[0]}{_told(fault.message)}")
                left = _without(left, place)
        return found, rest, faults

    def take(self, words: Sequence[str]) -> argparse.Namespace:
        """The same for words whose faults are the only ones that there can be.

        Raises:
            UserError: there are faults.
        """
        found = self.read(words)
        if found.faults:
            raise UserError("\n".join(found.faults))
        return found

    def _empty_at(self, words: Sequence[str]) -> int | None:
        """Where a flag stands whose value is empty, which is no choice of a file, a host or a number."""
        for place, word in enumerate(words):
            flag, equals, value = word.partition("=")
            action = self._option_string_actions.get(flag)
            if action is None or action.nargs is not None or action.dest in _MAY_BE_EMPTY:
                continue
            if (equals and not value) or (not equals and list(words[place + 1 : place + 2]) == [""]):
                return place
        return None

    def _nothing_given(self) -> argparse.Namespace:
        """Every flag's default."""
        flags = (action for action in self._actions if argparse.SUPPRESS not in (action.dest, action.default))
        return argparse.Namespace(**{action.dest: action.default for action in flags})

    def _spelt(self, word: str) -> str:
        """`--exist_ok` as `--exist-ok`, where only the latter is known; `-help` as `--help`."""
        if word == "-help":
            return "--help"
        name, equals, value = word.partition("=")
        known = self._option_string_actions
        if not name.startswith("--") or name in known:
            return word
        spellings = {option.replace("_", "-"): option for option in known}
        return spellings.get(name.replace("_", "-"), name) + equals + value

    def _unknown(self, rest: Sequence[str]) -> list[str]:
        """A line for each word that no flag takes; values behind an unknown flag are passed over."""
        lines, behind_a_flag = [], False
        for word in rest:
            if word.startswith("-"):
                behind_a_flag = "=" not in word
                lines.append(self._about_flag(word.partition("=")[0]))
            elif "=" in word:
                lines.append(self._about_assignment(word))
            elif not behind_a_flag:
                lines.append(f"'{word}' belongs to no flag; flags are written --name VALUE ({self.prog} --help)")
        return lines

    def _about_flag(self, flag: str) -> str:
        name = flag.lstrip("-").replace("-", "_")
        if remedy := self._foreign(name):
            return f"{flag}: {remedy}"
        hint = nearest(flag, self._option_string_actions, cutoff=0.75)
        return f"unknown flag {flag}{hint}; {self.prog} --help lists them"

    def _about_assignment(self, word: str) -> str:
        name, _, value = word.partition("=")
        flag = self._spelt(f"--{name}")
        if flag in self._option_string_actions:
            return f"{word}: {self._refusal(flag) or self._with_dashes(flag, value)}"
        remedy = self._foreign(name.replace("-", "_"))
        return f"{word}: {remedy or 'flags are written --name VALUE here'}"

    def _with_dashes(self, flag: str, value: str) -> str:
        """How `name=value` is written; what is on or off here is a flag without a value, or none."""
        if self._option_string_actions[flag].nargs in (0, "?") and value.lower() in ("true", "false"):
            if value.lower() == "false":
                return f"leave {flag} out"
            value = ""
        return f"flags are written with dashes here: {flag} {value}".rstrip()

    def _refusal(self, flag: str) -> str | None:
        """Why a flag that is known is not taken; None: it is."""
        if self._option_string_actions[flag].dest != argparse.SUPPRESS:
            return None
        try:
            self.parse_known_args([flag])
        except RefusedFlag as refused:
            return str(refused)
        return None


_MAY_BE_EMPTY = ("weights", "project", "name", "launcher_args", argparse.SUPPRESS)
"""`--weights ''` is yolov5's way to start from nothing; the next two have a line of their own."""
_WRONG_VALUE = re.compile(r"invalid (int|float) value: (.*)")
_KINDS = {"int": "a whole number", "float": "a number"}


def _told(message: str) -> str:
    """argparse's account of a fault, in the words in which values are refused elsewhere."""
    if match := _WRONG_VALUE.fullmatch(message):
        return f" is {match[2]}: it has to be {_KINDS[match[1]]}"
    return f": {message}"


def _place(words: Sequence[str], flags: Sequence[str]) -> int | None:
    """Where one of the flags stands; a short one may have its value behind it in one word, as in -x3."""
    flags = [flag for flag in flags if flag]
    for place, word in enumerate(words):
        if word.partition("=")[0] in flags or (word[:1] == "-" != word[1:2] and word[:2] in flags):
            return place
    return None


def _without(words: list[str], place: int | None) -> list[str]:
    """The words but for the flag at `place` and its value."""
    assert place is not None
    end = place + 1
    alone = "=" not in words[place] and (words[place].startswith("--") or len(words[place]) == 2)
    if alone and end < len(words) and not words[end].startswith("-"):
        end += 1
    return words[:place] + words[end:]
