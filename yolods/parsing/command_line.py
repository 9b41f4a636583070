"""Parses a command line: finds all faults, and translates flags of other trainers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from yolods.errors import UserError, nearest
from yolods.system.streams import show


class RefusedFlag(UserError):
    """A flag of other trainers that is not supported; the message says what to do instead."""

    def __init__(self, flag: str, remedy: str) -> None:
        super().__init__(f"{flag} is not supported: {remedy}")
        self.flag = flag


class FlagNames:
    """Records the names of flags; functions that add arguments take it for a parser."""

    def __init__(self, *additions: Callable[[Any], None]) -> None:
        """
        Args:
            additions: functions that add arguments to their parser.
        """
        self.names: list[str] = []
        """Every spelling with its dashes, in the order of the calls."""
        for add in additions:
            add(self)

    def add_argument(self, *names: str, **_: Any) -> None:
        """As `ArgumentParser.add_argument`; only the names matter."""
        self.names += names

    def add_argument_group(self, *_: Any, **__: Any) -> FlagNames:
        """As `ArgumentParser.add_argument_group`; names in a group are recorded with the others."""
        return self


class FlagParser(argparse.ArgumentParser):
    """argparse that collects all faults, and treats `-` and `_` in flags as equal."""

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
            foreign: maps an unknown flag's name, with underscores and without dashes, to what to
                write instead; None: no advice.
        """
        # No abbreviations: a prefix of a flag would silently mean that flag.
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            exit_on_error=False,
            add_help=add_help,
        )
        self._foreign = foreign

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise, where argparse would print a usage and exit."""
        raise argparse.ArgumentError(None, message)

    def shown(self) -> list[argparse.Action]:
        """The flags that the help lists."""
        return [
            action
            for action in self._actions
            if action.option_strings and action.help != argparse.SUPPRESS
        ]

    def print_help(self, file: Any = None) -> None:
        """Print the help; raises UserError if it cannot be written to the screen."""
        show(self.format_help().rstrip())

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words; the result has `faults`, one line each. Faulty flags count as not
        given."""
        found, rest, faults = self.read_known(words)
        found.faults = (*faults, *self._unknown(rest))
        return found

    def read_known(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
        """Parse the words; returns the values, the words that are no known flag, and one line per
        fault of the rest."""
        left, faults = [self._spelt(word) for word in words], list[str]()
        while (place := self._empty_at(left)) is not None:
            faults.append(f"{left[place].partition('=')[0]} is empty: is a shell variable unset?")
            left = _without(left, place)
        # argparse stops at the first fault. Note it, remove its words and parse again, to find the
        # next one.
        while True:
            try:
                found, rest = self.parse_known_args(left)
                break
            except RefusedFlag as refused:
                faults.append(str(refused))
                left = _without(left, _place(left, [refused.flag]))
            except argparse.ArgumentError as fault:
                place = _place(left, (fault.argument_name or "").split("/"))
                # The fault belongs to no single word, such as a missing positional argument.
                if place is None:
                    found, rest = self._nothing_given(), []
                    faults.append(f"{self.prog}: {fault.message}")
                    break
                faults.append(f"{left[place].partition('=')[0]}{_told(fault.message)}")
                left = _without(left, place)
        return found, rest, faults

    def take(self, words: Sequence[str]) -> argparse.Namespace:
        """As `read`, for a command without other checks whose faults could be reported together.

        Raises:
            UserError: all faults, one line each.
        """
        found = self.read(words)
        if found.faults:
            raise UserError("\n".join(found.faults))
        return found

    def _empty_at(self, words: Sequence[str]) -> int | None:
        """The place of a flag with an empty value, which names no file, host or number."""
        for place, word in enumerate(words):
            flag, equals, value = word.partition("=")
            action = self._option_string_actions.get(flag)
            if action is None or action.nargs is not None or action.dest in _MAY_BE_EMPTY:
                continue
            if (equals and not value) or (
                not equals and list(words[place + 1 : place + 2]) == [""]
            ):
                return place
        return None

    def _nothing_given(self) -> argparse.Namespace:
        """The defaults of all flags."""
        flags = (
            action
            for action in self._actions
            if argparse.SUPPRESS not in (action.dest, action.default)
        )
        return argparse.Namespace(**{action.dest: action.default for action in flags})

    def _spelt(self, word: str) -> str:
        """The word in its known spelling: `--exist-ok` for `--exist_ok`, `--help` for `-help`."""
        if word == "-help":
            return "--help"
        name, equals, value = word.partition("=")
        known = self._option_string_actions
        if not name.startswith("--") or name in known:
            return word
        # The known spelling is kept, because argparse matches it exactly: --deepspeed_config has an
        # underscore.
        spellings = {option.replace("_", "-"): option for option in known}
        return spellings.get(name.replace("_", "-"), name) + equals + value

    def _unknown(self, rest: Sequence[str]) -> list[str]:
        """One line for each word that belongs to no flag; values after an unknown flag get none."""
        lines, behind_a_flag = [], False
        for word in rest:
            if word.startswith("-"):
                behind_a_flag = "=" not in word
                lines.append(self._about_flag(word.partition("=")[0]))
            elif "=" in word:
                lines.append(self._about_assignment(word))
            elif not behind_a_flag:
                lines.append(
                    f"unexpected '{word}'; write flags as --name VALUE ({self.prog} --help)"
                )
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
            return f"{word}: {self.why_not(flag) or self._with_dashes(flag, value)}"
        remedy = self._foreign(name.replace("-", "_"))
        return f"{word}: {remedy or 'write flags as --name VALUE'}"

    def _with_dashes(self, flag: str, value: str) -> str:
        """How to write ultralytics' `name=value`; a switch is a flag without a value, or no
        flag."""
        if self._option_string_actions[flag].nargs in (0, "?") and value.lower() in (
            "true",
            "false",
        ):
            if value.lower() == "false":
                return f"omit {flag}"
            value = ""
        return f"write flags with dashes: {flag} {value}".rstrip()

    def why_not(self, flag: str) -> str | None:
        """Why a flag is not supported, or what to write in place of an unknown one; None: there is
        nothing to say."""
        flag = self._spelt(flag)
        if flag not in self._option_string_actions:
            return self._foreign(flag.lstrip("-").replace("-", "_"))
        if self._option_string_actions[flag].dest != argparse.SUPPRESS:
            return None
        try:
            self.parse_known_args([flag])
        except RefusedFlag as refused:
            return str(refused)
        return None


_MAY_BE_EMPTY = ("weights", "project", "name", "launcher_args", argparse.SUPPRESS)
"""`--weights ''` means random weights, as in yolov5; project and name have own messages."""
_WRONG_VALUE = re.compile(r"invalid (int|float|images) value: (.*)")
_KINDS = {"int": "a whole number", "float": "a number", "images": "a whole number, or auto"}


def _told(message: str) -> str:
    """argparse's message, with wrong values in the words of `rules.check`."""
    if match := _WRONG_VALUE.fullmatch(message):
        return f" is {match[2]}: it must be {_KINDS[match[1]]}"
    return f": {message}"


def _place(words: Sequence[str], flags: Sequence[str]) -> int | None:
    """The place of the first of the flags; a short flag may include its value, as in -x3."""
    flags = [flag for flag in flags if flag]
    for place, word in enumerate(words):
        if word.partition("=")[0] in flags or (word[:1] == "-" != word[1:2] and word[:2] in flags):
            return place
    return None


def _without(words: list[str], place: int | None) -> list[str]:
    """The words without the flag at `place` and its value."""
    assert place is not None
    end = place + 1
    alone = "=" not in words[place] and (words[place].startswith("--") or len(words[place]) == 2)
    if alone and end < len(words) and not words[end].startswith("-"):
        end += 1
    return words[:place] + words[end:]
