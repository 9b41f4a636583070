"""Figures of the code's structure: `python tests/house.py [CHECKOUT]` prints them.

tests/unit/test_house.py checks their limits. Everything is read from the source text by `ast`;
nothing of yolods is imported. What is counted, and how:

    function    lines from `def` to its last, with docstring; a nested one counts in both
    class       attributes: fields, class variables and those that methods set on `self`;
                methods: every `def`, including properties
    folder      its .py files, including `__init__.py`
    import      including lazy ones inside functions and those for type checkers;
                not the parent package that Python imports together with a module
    twin names  public names that two modules define at module level,
                except loggers, type variables and a command's `main`
    own test    tests/unit/test_<module>.py or test_<room>_<module>.py, which must import the
                module, or name it in the script of a child process
    comments    lines with a comment per 100 lines with code

A class may exceed the limits with a reason in a comment beside it: `# Wide: <reason>`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.workarounds import is_name, workarounds  # noqa: E402  (needs the path above)

PACKAGE = "yolods"

FOLDER, P95, LONGEST, ATTRIBUTES, METHODS = 12, 30, 64, 12, 15
"""The limits: modules per folder, lines per function (95th percentile, maximum), class sizes."""

COMPAT = "yolods.compat"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    """The dotted name; a package has that of its folder."""
    path: Path
    text: str
    packaged: bool = False
    """Whether it is a package's `__init__.py`."""

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def definitions(self) -> list[tuple[str, ast.AST]]:
        """The functions and classes with their qualified names."""
        return list(_defined(self.tree, ""))

    @cached_property
    def lines(self) -> list[str]:
        """The lines without line ends."""
        return self.text.splitlines()

    def at(self, node: ast.AST) -> str:
        """The place of a node, as module:line."""
        return f"{self.name}:{node.lineno}"


@dataclass(frozen=True, order=True)
class Import:
    """An import of one module by another."""

    source: str
    target: str
    line: int


@dataclass(frozen=True, order=True)
class Sized:
    """A function or class, and its size."""

    size: int
    where: str
    name: str
    more: int = 0
    """Number of methods of a class, whose `size` is the number of attributes."""

    def __str__(self) -> str:
        return f"{self.size:4d}  {self.where}  {self.name}"


@dataclass(frozen=True)
class Room:
    """A row of the table of rooms in CONTRIBUTING.md."""

    names: tuple[str, ...]
    """Dotted names of modules and packages."""
    allowed: frozenset[str]
    """The words of the last column, which name the rooms that it may import."""


def read_package(root: Path = ROOT) -> dict[str, Module]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        packaged = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if packaged else parts)
        found[name] = Module(name, path, path.read_text(encoding="utf-8"), packaged)
    return found


# Imports


def imports(modules: Mapping[str, Module]) -> list[Import]:
    """Every import of one module of the package by another, also inside functions."""
    found = set()
    for module in modules.values():
        for name, line in _named(module):
            target = name
            while target not in modules and "." in target:  # a class or function of the module
                target = target.rpartition(".")[0]
            if target in modules and target != module.name:
                found.add(Import(module.name, target, line))
    return sorted(found)


def _named(module: Module) -> Iterator[tuple[str, int]]:
    """The full dotted name of everything that a module imports, with the line."""
    package = module.name if module.packaged else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            start = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{start}.{alias.name}", node.lineno) for alias in node.names)


def cycles(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of names in which every name leads to all others."""
    follow = defaultdict(set)
    for source, target in arrows:
        follow[source].add(target)
    reached = {name: _reached(name, follow) for name in list(follow)}
    groups = {
        tuple(sorted(other for other in found if name in reached.get(other, ())))
        for name, found in reached.items()
        if name in found
    }
    return sorted(map(list, groups))


def _reached(start: str, follow: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = list(follow.get(start, ()))
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += follow.get(name, ())
    return found


# Rooms


def rooms(page: str) -> list[Room]:
    """The rows of the table in section "The rooms", from the lowest room to the highest."""
    table = page.partition("\n## The rooms\n")[2].partition("\n## ")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        names = re.findall(r"`([\w/.]+?)(?:/|\.py)`", cells[0]) if line.startswith("|") else []
        if names:
            words = frozenset(re.findall(r"[a-z_]+(?:/[a-z_]+)*", cells[-1].lower()))
            found.append(
                Room(tuple(f"{PACKAGE}.{name.replace('/', '.')}" for name in names), words)
            )
    return found


def room_of(module: str, table: Sequence[Room]) -> tuple[int, str] | None:
    """The row of a module, and the longest name in it that matches the module."""
    fitting = [
        (name, row)
        for row, room in enumerate(table)
        for name in room.names
        if module == name or module.startswith(f"{name}.")
    ]
    if not fitting:
        return None
    name, row = max(fitting, key=lambda found: len(found[0]))
    return row, name


def may_import(table: Sequence[Room], row: int, target: int, name: str) -> bool:
    """Whether a row allows another room, by name or by "all" or "all of the above"."""
    words = table[row].allowed
    short = name.removeprefix(f"{PACKAGE}.").replace(".", "/")
    return short in words or ("all" in words and ("above" not in words or target < row))


def homeless(modules: Iterable[str], table: Sequence[Room]) -> list[str]:
    """Modules that no row of the table covers, except the package itself and its __main__."""
    return [
        name
        for name in modules
        if name not in (PACKAGE, f"{PACKAGE}.__main__") and not room_of(name, table)
    ]


def arrows(
    found: Iterable[Import], table: Sequence[Room]
) -> Iterator[tuple[Import, str, str, bool, bool]]:
    """Imports between rooms: the import, both rooms, whether it is allowed, and whether it is
    upward.

    An upward import is one of a room in a lower row. Every room may import `compat`, since any may
    need a workaround.
    """
    for each in found:
        source, target = room_of(each.source, table), room_of(each.target, table)
        if source and target and source[1] != target[1] and each.target != COMPAT:
            allowed = may_import(table, source[0], *target)
            yield each, source[1], target[1], allowed, target[0] > source[0]


def forbidden(found: Iterable[Import], table: Sequence[Room]) -> list[str]:
    """Imports that the table does not allow."""
    return [_told(each) for each, _, _, allowed, _ in arrows(found, table) if not allowed]


def upward(found: Iterable[Import], table: Sequence[Room]) -> list[str]:
    """Imports of a room in a lower row of the table."""
    return [_told(each) for each, _, _, _, up in arrows(found, table) if up]


def _told(found: Import) -> str:
    return f"{found.source}:{found.line} imports {found.target}"


def folders(modules: Mapping[str, Module]) -> Counter[str]:
    """Modules per folder."""
    return Counter(
        module.name if module.packaged else module.name.rpartition(".")[0]
        for module in modules.values()
    )


# Functions and classes


def functions(modules: Mapping[str, Module]) -> list[Sized]:
    """Every function, longest first."""
    found = []
    for module in modules.values():
        for name, node in module.definitions:
            if isinstance(node, Function):
                found.append(Sized(node.end_lineno - node.lineno + 1, module.at(node), name))
    return sorted(found, reverse=True)


def _defined(tree: ast.AST, above: str) -> Iterator[tuple[str, ast.AST]]:
    """Functions and classes below a node, with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield f"{above}{node.name}", node
            yield from _defined(node, f"{above}{node.name}.")
        else:
            yield from _defined(node, above)


def percentile(sizes: Sequence[int], part: float) -> int:
    """The value below which the share `part` of all sizes lies."""
    return sorted(sizes)[min(int(part * len(sizes)), len(sizes) - 1)]


def classes(modules: Mapping[str, Module]) -> list[tuple[Sized, str]]:
    """Every class with the reason for its width or "", widest first."""
    found = []
    for module in modules.values():
        for name, node in module.definitions:
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, Function)]
                size = Sized(len(_attributes(node, methods)), module.at(node), name, len(methods))
                found.append((size, _reason(module, node)))
    return sorted(found, reverse=True)


def _attributes(node: ast.ClassDef, methods: Sequence[Function]) -> set[str]:
    found = {
        target.id for each in node.body for target in _targets(each) if isinstance(target, ast.Name)
    }
    for each in (each for method in methods for each in ast.walk(method)):
        if (
            isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Store)
            and is_name(each.value, "self")
        ):
            found.add(each.attr)
    return found


def _reason(module: Module, node: ast.ClassDef) -> str:
    """The reason after `# Wide:` on the line of the class, or in the comment directly above it."""
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
    above = first
    while above and module.lines[above - 1].lstrip().startswith("#"):
        above -= 1
    beside = " ".join(line.strip().lstrip("# ") for line in module.lines[above:first])
    for text in (module.lines[node.lineno - 1], f"# {beside}"):
        if told := re.search(r"# .*?\bWide: (.+)|# Wide: (.+)", text):
            return next(filter(None, told.groups()))
    return ""


def too_wide(modules: Mapping[str, Module]) -> list[str]:
    """Classes over a limit without a reason."""
    return [
        f"{size.where} {size.name}: {size.size} attributes, {size.more} methods"
        for size, reason in classes(modules)
        if (size.size > ATTRIBUTES or size.more > METHODS) and not reason
    ]


# Names


def twin_names(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """Public names that several modules define at module level."""
    where = defaultdict(set)
    for module in modules.values():
        for name in _top_names(module):
            if not name.startswith("_"):
                where[name].add(module.name)
    return {name: sorted(found) for name, found in sorted(where.items()) if len(found) > 1}


def _top_names(module: Module) -> Iterator[str]:
    command = '\nif __name__ == "__main__":' in module.text
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef) and not (command and node.name == "main"):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not _is_usual(node.value):
            yield from (target.id for target in _targets(node) if isinstance(target, ast.Name))


def _is_usual(value: ast.AST | None) -> bool:
    """Whether this creates a logger or type variable, which every module may have."""
    called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
    return called.rpartition(".")[2] in ("getLogger", "TypeVar", "ParamSpec")


def twin_functions(modules: Mapping[str, Module]) -> list[list[str]]:
    """Functions with equal parameters and code.

    Single statements count only for functions of one name, and not for methods.
    """
    where = defaultdict(list)
    for module in modules.values():
        for name, node in module.definitions:
            if isinstance(node, Function):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                called = "" if len(body) > 1 else name
                code = "\n".join(map(ast.unparse, body))
                where[called, ast.unparse(node.args), code].append(f"{module.at(node)} {name}")
    return sorted(
        found for (called, _, _), found in where.items() if len(found) > 1 and "." not in called
    )


# Text


def comment_share(modules: Mapping[str, Module]) -> float:
    """Lines with a comment per 100 lines with code."""
    comments, code = 0, 0
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for module in modules.values():
        held: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
            comments += token.type == tokenize.COMMENT
            if token.type not in skipped:
                held.update(range(token.start[0], token.end[0] + 1))
        code += len(held - _of_docstrings(module))
    return 100 * comments / code


def _of_docstrings(module: Module) -> set[int]:
    """Lines of docstrings, including those of attributes."""
    found: set[int] = set()
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found.update(range(node.lineno, node.end_lineno + 1))
    return found


def longest_lines(modules: Mapping[str, Module], count: int) -> list[Sized]:
    """The longest lines, in characters."""
    found = [
        Sized(len(line), f"{module.name}:{number}", "")
        for module in modules.values()
        for number, line in enumerate(module.lines, 1)
    ]
    return sorted(found, reverse=True)[:count]


# Tests


def without_test(modules: Mapping[str, Module], tests: Path = ROOT / "tests" / "unit") -> list[str]:
    """Modules with code, and not only constants and imports, that have no own test file."""
    said = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign)
    working = [
        name
        for name, module in modules.items()
        if any(not isinstance(each, said) for each in module.tree.body)
    ]
    return [name for name in working if not _has_test(name, tests)]


def _has_test(name: str, tests: Path) -> bool:
    parts = name.strip("_").split(".")[1:]
    for length in range(1, len(parts) + 1):
        path = tests / f"test_{'_'.join(part.strip('_') for part in parts[-length:])}.py"
        if path.is_file():
            read = Module(path.stem, path, path.read_text(encoding="utf-8"))
            named = {each for each, _ in _named(read)} | set(
                re.findall(r"[\w.]+", read.text)
            )  # also in the text of a script
            if any(each == name or each.startswith(f"{name}.") for each in named):
                return True
    return False


def _targets(node: ast.AST) -> list[ast.AST]:
    """The targets of an assignment, with tuples unpacked; empty for other nodes."""
    given = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [
        each
        for target in given
        for each in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]


# The page


def report(root: Path = ROOT) -> str:
    """All figures as text."""
    modules = read_package(root)
    table = rooms((root / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    found = imports(modules)
    between = list(arrows(found, table))
    sizes = functions(modules)
    lengths = [each.size for each in sizes]
    middling = [each for each in sizes if P95 < each.size <= LONGEST]
    wide = [
        (size, why)
        for size, why in classes(modules)
        if size.size > ATTRIBUTES or size.more > METHODS
    ]
    twins, counts = twin_names(modules), folders(modules)
    crowded = [f"{count:4d}  {name}" for name, count in counts.most_common() if count > FOLDER]
    return "\n".join(
        [
            f"modules {len(modules)}, lines "
            f"{sum(len(module.lines) for module in modules.values())}",
            *_part(
                "import cycles of modules",
                map(" ".join, cycles((each.source, each.target) for each in found)),
            ),
            *_part(
                "import cycles of rooms",
                map(" ".join, cycles((source, to) for _, source, to, _, _ in between)),
            ),
            *_part("modules in no row of the table", homeless(modules, table)),
            *_part("imports that the table does not allow", forbidden(found, table)),
            *_part("imports that go upward in the table", upward(found, table)),
            *_part("what each room imports", _rows(between)),
            *_part(
                "modules per folder",
                (f"{count:4d}  {name}" for name, count in counts.most_common()),
            ),
            *_part(f"folders over {FOLDER}", crowded),
            f"functions {len(sizes)}: median {percentile(lengths, 0.5)}, p95 "
            f"{percentile(lengths, 0.95)}, max {lengths[0]} lines",
            *_part(
                f"functions over {LONGEST} lines",
                (str(each) for each in sizes if each.size > LONGEST),
            ),
            *_part(
                f"functions of {P95 + 1} to {LONGEST} lines, the 20 longest of {len(middling)}",
                map(str, middling[:20]),
                counted=False,
            ),
            *_part(
                f"classes over {ATTRIBUTES} attributes or {METHODS} methods",
                (
                    f"{each.size:4d} {each.more:3d}  {each.where}  {each.name}  {why}".rstrip()
                    for each, why in wide
                ),
            ),
            *_part("twin names", (f"{name}: {', '.join(where)}" for name, where in twins.items())),
            *_part("functions with the same code", map(", ".join, twin_functions(modules))),
            f"comment lines {comment_share(modules):.1f} per 100 lines of code",
            *_part("longest lines", map(str, longest_lines(modules, 5)), counted=False),
            *_part(
                "modules without a test file of their own",
                without_test(modules, root / "tests" / "unit"),
            ),
            *_part(
                "workarounds outside compat",
                workarounds({name: module.tree for name, module in modules.items()}),
            ),
        ]
    )


def _part(title: str, rows: Iterable[str], *, counted: bool = True) -> list[str]:
    rows = list(rows)
    return [f"{title}{f': {len(rows)}' if counted else ''}", *(f"    {row}" for row in rows)]


def _rows(between: Iterable[tuple[Import, str, str, bool, bool]]) -> Iterator[str]:
    """The rooms that each room imports; `!` marks those that the table does not allow."""
    found = defaultdict(set)
    for _, source, target, allowed, _ in between:
        found[source].add(f"{'' if allowed else '!'}{target.removeprefix(f'{PACKAGE}.')}")
    for source, targets in found.items():
        yield f"{source.removeprefix(f'{PACKAGE}.')}: {', '.join(sorted(targets))}"


if __name__ == "__main__":
    print(report(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
