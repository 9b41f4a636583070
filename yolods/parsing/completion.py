"""Completion for bash and zsh, made from the parsers of the commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from yolods.parsing.command_line import FlagParser

SHELLS = ("bash", "zsh")

_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
"""zsh understands bash's functions with this."""
_SCRIPT = """_yolods() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command= each words=
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $each in
            {commands}) command=$each && break ;;
        esac
    done
    COMPREPLY=()
    case $command:$before in
{values}
    esac
    if [[ -z $words && $word == -* ]]; then
        case $command in
{flags}
        esac
    elif [[ -z $words && -z $command ]]; then
        words={first}
    fi
    [[ -z $words ]] || COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _yolods yolods launch.sh ./launch.sh
"""


def completion_script(
    shell: str,
    parsers: Mapping[str, FlagParser],
    others: Mapping[str, Sequence[str]],
    values: Mapping[str, Iterable[str]],
) -> str:
    """The script for a shell to source. Where it has nothing to offer, the shell offers files.

    Args:
        shell: one of SHELLS.
        parsers: the commands that have flags.
        others: further commands, and the words that may follow each; none for `launch`, which
            another command follows.
        values: values of flags that their parsers accept but do not list.
    """
    flags, offered = [], [_case(f":{name}", words) for name, words in others.items() if words]
    for name, parser in parsers.items():
        known = parser.shown()
        flags.append(_case(name, (option for each in known for option in each.option_strings)))
        for action in known:
            listed = [value for each in action.option_strings for value in values.get(each, ())]
            listed += map(str, action.choices or ())
            if listed:
                places = "|".join(f"{name}:{option}" for option in action.option_strings)
                offered.append(_case(places, listed))
    text = _SCRIPT.format(
        commands="|".join(parsers),
        values="\n".join(offered),
        flags="\n".join(f"    {line}" for line in flags),
        first=shlex.quote(" ".join([*parsers, *others])),
    )
    return f"{_ZSH if shell == 'zsh' else ''}{text}"


def _case(pattern: str, words: Iterable[str]) -> str:
    """A branch of `case` that offers words."""
    return f"        {pattern}) words={shlex.quote(' '.join(words))} ;;"
