"""The rules of the house hold: limits of size, one way of imports, one meaning of a name, a test
for each module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house import (
    FOLDER,
    LONGEST,
    P95,
    ROOT,
    Module,
    cycles,
    folders,
    forbidden,
    functions,
    homeless,
    imports,
    percentile,
    read_package,
    report,
    rooms,
    too_wide,
    twin_functions,
    twin_names,
    upward,
    without_test,
)
from tests.workarounds import workarounds

MODULES = read_package()
IMPORTS = imports(MODULES)
TABLE = rooms((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def package(**texts: str) -> dict[str, Module]:
    """Modules of a made-up package; `a__b` is yolods.a.b."""
    names = {name: f"yolods.{name.replace('__', '.')}" for name in texts}
    return {names[key]: Module(names[key], Path(f"{key}.py"), text) for key, text in texts.items()}


# The limits


def test_no_module_imports_itself_by_way_of_others():
    assert cycles((each.source, each.target) for each in IMPORTS) == []


def test_every_module_has_a_room():
    assert homeless(MODULES, TABLE) == []


def test_a_room_imports_only_what_its_row_allows():
    assert forbidden(IMPORTS, TABLE) == []


def test_no_room_imports_one_that_stands_further_down():
    assert upward(IMPORTS, TABLE) == []


def test_a_folder_can_be_seen_at_a_glance():
    assert {name: count for name, count in folders(MODULES).items() if count > FOLDER} == {}


def test_functions_are_short():
    sizes = functions(MODULES)
    assert percentile([each.size for each in sizes], 0.95) <= P95
    assert [str(each) for each in sizes if each.size > LONGEST] == []


def test_a_class_is_narrow_or_gives_its_reason():
    assert too_wide(MODULES) == []


def test_a_public_name_is_defined_once():
    assert twin_names(MODULES) == {}


def test_no_function_is_written_twice():
    assert twin_functions(MODULES) == []


def test_every_module_has_a_test_file_of_its_own():
    assert without_test(MODULES) == []


def test_workarounds_stand_in_compat_alone():
    assert workarounds({name: module.tree for name, module in MODULES.items()}) == []


# That the rules can see


def test_a_lazy_import_closes_a_cycle():
    made = package(
        a="def f():\n    from yolods.b import g\n", b="import yolods.c", c="from yolods import a\n"
    )
    assert cycles((each.source, each.target) for each in imports(made)) == [
        ["yolods.a", "yolods.b", "yolods.c"]
    ]


PAGE = """
## The rooms

| room | its job | may import |
| --- | --- | --- |
| `low.py` | | the standard library |
| `mid/` | | low's types |
| `top.py` | | all of the above |

## The rules
"""


def test_the_table_allows_what_its_row_names_and_no_more():
    table = rooms(PAGE)
    made = package(
        low="from yolods.mid import one",
        mid__one="from yolods import low, top",
        top="import yolods.mid.one",
        other="",
    )
    climbs = ["yolods.low:1 imports yolods.mid.one", "yolods.mid.one:1 imports yolods.top"]
    assert forbidden(imports(made), table) == climbs
    assert upward(imports(made), table) == climbs
    assert homeless(made, table) == ["yolods.other"]


def test_fields_and_what_is_set_on_self_are_attributes():
    methods = "".join(f"    def f{i}(self):\n        self.a{i} = 0\n" for i in range(13))
    fields = "".join(f"    b{i}: int = 0\n" for i in range(13))
    made = package(
        a=(
            f"class A:\n{methods}\n\n# Wide: one per column.\n@f\nclass B:\n{fields}\n\n"
            f"class C:\n{fields}"
        )
    )
    assert [each.split(" ", 1)[1] for each in too_wide(made)] == [
        "C: 13 attributes, 0 methods",
        "A: 13 attributes, 13 methods",
    ]


def test_a_function_counts_from_def_to_its_last_line():
    (one,) = functions(package(a='@wrapped\ndef f(\n    x,\n):\n    """Doc."""\n\n    return x\n'))
    assert one.size == 6


def test_twins_are_names_and_code():
    text = (
        "log = logging.getLogger(__name__)\nSIZE, _own = 1, 2\n"
        "def {}(x):\n    y = x + 1\n    return y\n"
    )
    made = package(a=text.format("f"), b=text.format("g"))
    assert twin_names(made) == {"SIZE": ["yolods.a", "yolods.b"]}
    assert twin_functions(made) == [["yolods.a:3 f", "yolods.b:3 g"]]


def test_a_test_of_its_own_imports_the_module(tmp_path):
    code = "def f(): ..."
    made = package(a__b=code, c__b=code, c__d=code, constants="x = 1")
    (tmp_path / "test_b.py").write_text("from yolods.c import b")
    (tmp_path / "test_c_d.py").write_text("SCRIPT = 'import yolods.c.d'")
    assert without_test(made, tmp_path) == ["yolods.a.b"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch\ntorch.compile = None", "assigns to torch.compile"),
        (
            "def f():\n    from deepspeed.launcher import runner\n    runner.signal, x = 1, 2",
            "assigns to runner.signal",
        ),
        (
            "import torch as t, ultralytics as u\nfor m in (t, u):\n    setattr(m, n, 1)",
            "calls setattr(m, n, 1)",
        ),
        ("import sys\nsys.modules['x'] = 1", "writes sys.modules"),
        ("import sys\ndel sys.modules['x']", "writes sys.modules"),
        (
            "def f(engine: Any):\n    engine.optimizer.scaler = 1",
            "assigns to engine.optimizer.scaler",
        ),
        ("from torch import nn\ndef f(net: nn.Module):\n    net.x = 1", "assigns to net.x"),
        ("from ultralytics.nn import _hidden", "imports _hidden"),
        ("import torch\ntorch._C", "uses torch._C"),
        ("def f(x):\n    x._theirs", "uses x._theirs"),
        ("def f(x):\n    getattr(x, '_theirs', 0)", "calls getattr(x, '_theirs', 0)"),
        # and what is none
        ("import torch\ntorch.backends.cudnn.deterministic = True", None),
        ("import torch\ntorch._foreach_mul_(x, 2)", None),
        ("import os\nos._exit(1)", None),
        ("class A:\n    def f(self, other: Any):\n        self._x = other._x", None),
        ("class A(B):\n    def f(self):\n        super()._theirs()", None),
    ],
)
def test_what_is_a_workaround(text, found):
    told = workarounds({"yolods.a": ast.parse(text)})
    assert [each.split(" ", 1)[1] for each in told] == ([] if found is None else [found])
    assert workarounds({"yolods.compat": ast.parse(text)}) == []


def test_the_page_names_all_of_it():
    page = report()
    assert page.startswith(f"modules {len(MODULES)}, lines ")
    assert "workarounds outside compat" in page
