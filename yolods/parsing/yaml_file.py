"""Reads a user's YAML; everything that is wrong with it is a NotYaml with its line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import yaml


class NotYaml(ValueError):
    """The text is not valid YAML. `str()` is the reason, on one line."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(" ".join(reason.split()))
        self.line = line
        """Line number, from 1; None: unknown."""


class Entry(NamedTuple):
    """A key of the outermost mapping with its value."""

    key: str
    value: Any
    line: int
    """Line number of the key, from 1."""


def parse_yaml(text: str) -> Any:
    """Read one document, as `yaml.safe_load` does.

    Raises:
        NotYaml: the text is not valid YAML, or a mapping has a key twice.
    """
    with _refusals():
        loader = _Strict(text)
        root = loader.get_single_node()
        return None if root is None else loader.construct_object(root, deep=True)


def parse_entries(text: str) -> list[Entry] | None:
    """Read a document of `key: value` lines; a duplicate key has two entries.

    Returns:
        the entries in the file's order; None: the document is not a mapping.

    Raises:
        NotYaml: the text is not valid YAML.
    """
    with _refusals():
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            return None
        return [
            Entry(_word(key), loader.construct_object(value, deep=True), _line(key))
            for key, value in root.value
        ]


class _Loader(yaml.SafeLoader):
    """Turns PyYAML's errors into NotYaml. PyYAML raises a dozen kinds of errors, such as plain
    ValueErrors, for values that look like a date or a number but are not valid ones."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (NotYaml, yaml.YAMLError, RecursionError):  # `_refusals` handles these
            raise
        except Exception:
            kind = node.tag.rpartition(":")[2]
            written = f"{str(node.value)[:40]!r} is " if isinstance(node, yaml.ScalarNode) else ""
            raise NotYaml(
                f"{written}not a valid {kind}; quote it if it is text", _line(node)
            ) from None


class _Strict(_Loader):
    """Refuses duplicate keys, of which PyYAML would silently take the last."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            # `<<` merges another mapping and may occur several times.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)
            if value in lines:
                raise NotYaml(
                    f"{key.value} is already on line {lines[value]}; keep one", _line(key)
                )
            lines[value] = _line(key)
        return node


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        raise NotYaml(reason, mark.line + 1 if mark else None) from None
    except RecursionError:
        raise NotYaml("it is nested too deeply") from None


def _word(key: yaml.Node) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise NotYaml("a key must be a word", _line(key))
    return key.value


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
