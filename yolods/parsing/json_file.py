"""Reads a user's JSON file: shows the line of a syntax error, and finds duplicate keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from yolods.errors import Faults


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads`, but deep nesting, a RecursionError there, is a ValueError, too.

    Raises:
        ValueError: the text cannot be read.
    """
    try:
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, where: str, faults: Faults) -> dict[str, Any] | None:
    """Read a JSON object.

    Args:
        where: its name in messages, for example "--deepspeed_config ds.json".

    Returns:
        the object; None, and a fault added, if it cannot be read.
    """
    text = _read_text(path, where, faults)
    if text is None:
        return None
    try:
        loaded, twice = _parsed(text)
    except json.JSONDecodeError as error:
        faults.add(f"{where}: {_syntax(text, error)}")
        return None
    except ValueError as error:
        faults.add(f"{where}: {error}")
        return None
    for key in twice:
        faults.add(f'{where}: duplicate key "{key}" in one block; keep one')
    if not isinstance(loaded, dict):
        faults.add(f"{where}: it must contain one object {{...}}")
        return None
    return loaded


def _read_text(path: Path, where: str, faults: Faults) -> str | None:
    """The text of a file; None, and a fault added, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        faults.add(f"{where}: no such file")
    except (OSError, UnicodeDecodeError) as error:
        faults.add(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}")
    return None


def _parsed(text: str) -> tuple[Any, list[str]]:
    """The value of a JSON text, and the keys that a block contains a second time."""
    # json.loads lets the last of equal keys win silently, so collect them here.
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        block: dict[str, Any] = {}
        for key, value in found:
            if key in block:
                twice.append(key)
            block[key] = value
        return block

    return parse_json(text, object_pairs_hook=pairs, parse_constant=_no_constant), twice


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; use a finite number")


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    """A message with line, column, json's reason, the text, and a hint at the usual mistakes."""
    lines = text.splitlines() or [""]
    line = lines[min(error.lineno, len(lines)) - 1].strip()
    before = text[: error.pos + 1].rstrip("}] \n\r\t")
    after = text[error.pos :].lstrip(", \n\r\t")
    if line.startswith(("#", "//", "/*")):
        hint = "; JSON has no comments"
    elif before.endswith(",") and after.startswith(("}", "]")):
        hint = "; trailing comma before the closing bracket"
    elif "'" in line:
        hint = "; JSON strings need \", not '"
    else:
        hint = ""
    message = error.msg[:1].lower() + error.msg[1:]
    return f"line {error.lineno} column {error.colno}: {message}: `{line}`{hint}"
