"""Finds the places where yolods changes a dependency or uses its private names, by `ast`.

Three things count:

- assigning to an attribute of a dependency's module or class, or of a parameter with the type `Any`
or a dependency's class, by `=`, `del`, `setattr` or `delattr`;
- writing `sys.modules`;
- using a private name, `_x`, that yolods does not define itself, as an attribute, an import or a
string.

It does not find objects of a dependency that have a type of yolods, or are attributes of one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping

PACKAGE = "yolods"
ALLOWED = (
    "yolods.compat",
    # These exist to read and replace parts of DeepSpeed's optimizers.
    "yolods.zero.layers",
    "yolods.zero.master_weights",
    "yolods.zero.shards",
    "yolods.zero.gradients",
    "yolods.zero.reduction",
    "yolods.zero.loss_scale",
    "yolods.zero.owned_reduction",
    "yolods.zero.resident",
    "yolods.zero.whole_reduction",
)
"""Modules that may contain such places."""
SETTINGS = "torch.backends."
"""Attributes that torch documents for assignment."""
KERNELS = "torch._foreach_"
"""The kernels of torch's own optimizers, which have no public name."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def workarounds(trees: Mapping[str, ast.Module]) -> list[str]:
    """Every such place outside `ALLOWED`, as "module:line what".

    Args:
        trees: the syntax of each module of the package, by its dotted name.
    """
    own = {name for tree in trees.values() for name in _defined(tree)}
    return [
        f"{module}:{line} {what}"
        for module, tree in trees.items()
        if module not in ALLOWED
        for line, what in sorted(set(_Text(tree, own).places()))
    ]


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names of functions, classes and variables, and of attributes set on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and _is_written(node) and is_name(node.value, "self"):
            yield node.attr
        elif isinstance(node, ast.Name) and _is_written(node):
            yield node.id


class _Text:
    """One module's text, and what its names stand for."""

    def __init__(self, tree: ast.Module, own: set[str]) -> None:
        self._tree, self._own = tree, own
        self._foreign: dict[str, str] = {}
        """Local name -> dotted name of what it stands for in a dependency."""
        self._standard: set[str] = set()
        """Names of the standard library, which documents some functions with an underscore."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    self._learn(alias.asname or top, alias.name if alias.asname else top)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self._learn(alias.asname or alias.name, f"{node.module}.{alias.name}")
        for node in ast.walk(tree):  # `for module in (one, other): module.name = ...`
            if (
                isinstance(node, ast.For)
                and isinstance(node.target, ast.Name)
                and isinstance(node.iter, ast.Tuple)
            ):
                for each in node.iter.elts:
                    if root_of(each) in self._foreign:
                        self._foreign[node.target.id] = self._foreign[root_of(each)]

    def _learn(self, local: str, whole: str) -> None:
        top = whole.partition(".")[0]
        if top in sys.stdlib_module_names:
            self._standard.add(local)
        elif top != PACKAGE:
            self._foreign[local] = whole

    def places(self) -> Iterator[tuple[int, str]]:
        """Line and description of each."""
        for node in ast.walk(self._tree):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").partition(".")[0] != PACKAGE
            ):
                yield from (
                    (node.lineno, f"imports {each.name}")
                    for each in node.names
                    if _is_private(each.name)
                )
            elif isinstance(node, ast.Attribute):
                yield from self._of_attribute(node)
            elif (
                isinstance(node, ast.Subscript)
                and _is_written(node)
                and ast.unparse(node.value) == "sys.modules"
            ):
                yield node.lineno, "writes sys.modules"
            elif isinstance(node, ast.Call) and is_name(
                node.func, "setattr", "delattr", "getattr", "hasattr"
            ):
                yield from self._of_call(node)
            elif isinstance(node, Function):
                yield from self._of_parameters(node)

    def _of_attribute(self, node: ast.Attribute) -> Iterator[tuple[int, str]]:
        root = root_of(node)
        writes = _is_written(node) and root in self._foreign
        if not writes and not (_is_private(node.attr) and root not in self._standard):
            return
        text = ast.unparse(node)
        whole = self._foreign.get(root, root) + text.removeprefix(root)
        if writes and not whole.startswith(SETTINGS):
            yield node.lineno, f"assigns to {text}"
        elif _is_private(node.attr) and not whole.startswith(KERNELS):
            ours = (
                is_name(node.value, "self", "cls")
                or text.startswith("super()._")
                or node.attr in self._own
            )
            if root in self._foreign or not ours:
                yield node.lineno, f"uses {text}"

    def _of_call(self, call: ast.Call) -> Iterator[tuple[int, str]]:
        target, name = call.args[:2]
        private = (
            isinstance(name, ast.Constant)
            and _is_private(str(name.value))
            and name.value not in self._own
        )
        if private or (_writes(call) and root_of(target) in self._foreign):
            yield call.lineno, f"calls {ast.unparse(call)}"

    def _of_parameters(self, function: Function) -> Iterator[tuple[int, str]]:
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        given = {each.arg for each in arguments if self._may_be_foreign(each.annotation)}
        given -= {"ctx"}  # of a torch.autograd.Function, which torch gives for the purpose
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and _is_written(node) and root_of(node) in given:
                yield node.lineno, f"assigns to {ast.unparse(node)}"
            elif isinstance(node, ast.Call) and _writes(node) and root_of(node.args[0]) in given:
                yield node.lineno, f"calls {ast.unparse(node)}"

    def _may_be_foreign(self, annotation: ast.AST | None) -> bool:
        return annotation is not None and (
            is_name(annotation, "Any") or root_of(annotation) in self._foreign
        )


def is_name(node: ast.AST, *names: str) -> bool:
    """Whether it is one of these names, alone."""
    return isinstance(node, ast.Name) and node.id in names


def root_of(node: ast.AST) -> str:
    """The name at the start of a chain of attributes and items; "" if it starts otherwise."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _is_written(node: ast.Attribute | ast.Name | ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _writes(call: ast.Call) -> bool:
    return is_name(call.func, "setattr", "delattr")
