"""benchmarks/gpu.py and gpu_two.py: their budget, parts that hang or die, the page, and the
environment."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu, gpu_two
from benchmarks.gpu_conductor import Part, Session, conduct, read_notes
from benchmarks.gpu_job import Job, Skip
from benchmarks.gpu_missing import NEEDED, missing
from benchmarks.gpu_page import faults, page

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"gpu.py": gpu.PARTS, "gpu_two.py": gpu_two.PARTS}

STUB = '''"""In the place of benchmarks.gpu_part: does what the part's function is called, without torch."""
import json, os, subprocess, sys, time

function, notes = sys.argv[1], sys.argv[sys.argv.index("--notes") + 1]
print("the stub is", function, flush=True)
with open(notes, "a") as file:
    file.write(json.dumps({"name": "first", "seconds": 0.5, "facts": {"found": 7}, "doubts": []}) + "\\n")
    file.write('{"name": "half a li' if function == "hangs" else "")
if function == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open(notes + ".child", "w").write(str(child.pid))
    time.sleep(600)
sys.exit(3 if function == "dies" else 0)
'''  # noqa: E501


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return Session(
        tmp_path / "out", tmp_path / "work", pretend=False, about={"command": "c"}, runner="stub"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_parts_together_take_less_than_ten_minutes(script: str) -> None:
    assert 0 < sum(part.seconds for part in SCRIPTS[script]) <= gpu.MOST < 600
    assert len({part.name for part in SCRIPTS[script]}) == len(SCRIPTS[script])


@pytest.mark.parametrize(
    "part", [part for parts in SCRIPTS.values() for part in parts], ids=lambda part: part.function
)
def test_every_part_names_a_function_of_one_job(part: Part) -> None:
    module, name = part.function.split(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    (found,) = [
        each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == name
    ]
    assert [argument.arg for argument in found.args.args] == ["job"]


def test_the_plan_is_told_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--plan", "--only", "engines", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "part engines: at most 85 s",
        "part cpu: at most 25 s",
        "all parts: at most 110 s",
    ]


@pytest.mark.process
def test_a_part_that_hangs_is_a_line_and_no_loss(session: Session) -> None:
    parts = [Part("slow", "hangs", 3, "hangs"), Part("quick", "ends", 30, "ends")]
    results = conduct(parts, session)
    slow, quick = results["parts"]
    assert (slow["status"], quick["status"]) == ("ran out of time", "done")
    assert [item["facts"] for item in slow["items"]] == [{"found": 7}], (
        "the half line is left out, the whole one counts"
    )
    assert slow["screen"] == ["the stub is hangs"]
    assert json.loads((session.out / "results.json").read_text()) == results
    assert "- slow: ran out of time" in (session.out / "results.md").read_text()
    child = int((session.work / "slow.jsonl.child").read_text())
    deadline = time.monotonic() + 5
    while (
        psutil.pid_exists(child)
        and psutil.Process(child).status() != "zombie"
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", (
        "a session of its own lives on"
    )


@pytest.mark.process
def test_a_part_that_dies_is_named_with_the_end_of_its_screen(session: Session) -> None:
    results = conduct([Part("bad", "dies", 30, "dies")], session)
    assert faults(results) == ["bad: died (3)"]
    assert "    the stub is dies" in (session.out / "results.md").read_text()


def test_an_item_is_noted_whatever_happens_in_it(tmp_path: Path) -> None:
    job = Job(tmp_path / "notes", tmp_path, 60, False, None, time.monotonic())
    with job.item("fails") as item:
        item.facts["before"] = 1
        raise ValueError("no such thing")
    with job.item("skips"):
        raise Skip("not here")
    with job.item("doubts") as item:
        item.expect(True, "never told")
        item.expect(False, "told")
    failed, skipped, doubted = read_notes(job.notes)
    assert (failed["failed"], failed["facts"]) == ("ValueError: no such thing", {"before": 1})
    assert skipped["skipped"] == "not here"
    assert doubted["doubts"] == ["told"]
    assert 59 < job.left <= 60


def test_the_page_begins_with_what_is_wrong_and_says_when_no_gpu_was_there() -> None:
    items = [
        {
            "name": "one",
            "seconds": 1.25,
            "facts": {"images/s": 123.456789, "same": True},
            "doubts": ["2 waits, 1 expected"],
        },
        {"name": "two", "seconds": 0.5, "facts": {}, "doubts": [], "failed": "OSError:\nno disk"},
        {"name": "three", "seconds": 0.5, "facts": {}, "doubts": [], "skipped": "no data"},
    ]
    entry = {
        "name": "part",
        "title": "looks",
        "limit": 20,
        "seconds": 2.5,
        "status": "with faults",
        "items": items,
    }
    results = {
        "pretended": True,
        "parts": [entry, {"name": "next", "title": "t", "limit": 5, "status": "not run"}],
    }
    text = page(results)
    wrong = [
        "- part, one: 2 waits, 1 expected",
        "- part, two: failed: OSError: no disk",
        "- next: not run",
    ]
    begin, table = text.index("## What is not as it should be"), text.index("| part |")
    assert text[begin:table].splitlines()[2:5] == wrong
    assert "**Not measured on a GPU.**" in text
    assert "  - images/s: 123.46\n  - same: yes" in text
    assert "- three: skipped, no data" in text
    assert "**Not measured" not in page({**results, "pretended": False})


def test_waits_are_counted_by_the_line_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from benchmarks.gpu_device import Device

    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait() -> int:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return sys._getframe().f_lineno - 1

    shown = warnings.showwarning
    with Device().waits() as found:
        line = max(wait() for _ in range(3))
        warnings.warn("something else", stacklevel=1)
    ((place, count),) = found.items()
    assert (count, place.split(" < ")[0]) == (3, f"tests/unit/test_gpu_benchmark.py:{line}")
    assert len(place.split(" < ")) == 3, "and its callers"
    assert modes == ["warn", "default"] and warnings.showwarning is shown


def test_what_an_image_lacks_is_asked_for_in_the_pinned_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import gpu_missing

    there = {"PIL", "yaml"}
    monkeypatch.setattr(gpu_missing, "find_spec", lambda module: module in there or None)
    found = missing((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert "deepspeed==0.19.8" in found and "opencv-python-headless==5.0.0.93" in found
    assert len(found) == len(NEEDED) - len(there)
    assert not [each for each in found if each.startswith(("torch", "nvidia", "triton", "pillow"))]


PLATFORM = {"ultralytics-platform", "httpx", "httpcore", "h11", "anyio"}
OLDER = {"tomli", "exceptiongroup"}
UNASKED = {*PLATFORM, *OLDER, "polars", "polars-runtime-32", "tzdata", "nvidia-ml-py"}
"""Of ultralytics' web service, for tables alone, of Python 3.10, or asked for softly: a session
does without."""


def requirements(name: str) -> list[str]:
    """Of a package that is installed; of another nothing is known."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def closure(*names: str) -> set[str]:
    """Packages with all that they require here."""
    found: set[str] = set()
    open_names = [canonicalize_name(name) for name in names]
    while open_names:
        if (name := open_names.pop()) not in found:
            found.add(name)
            wanted = map(Requirement, requirements(name))
            open_names += [
                canonicalize_name(each.name)
                for each in wanted
                if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return found


def test_all_that_an_image_with_torch_may_lack_is_looked_for() -> None:
    named = {canonicalize_name(package).removesuffix("-headless") for package in NEEDED.values()}
    needed = closure(
        "deepspeed",
        "ultralytics",
        "tensorboard",
        "matplotlib",
        "pytest",
        "psutil",
        "tqdm",
        "pyyaml",
    )
    assert needed - closure("torch", "torchvision") - named <= UNASKED
    assert named <= needed


PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$CALLS"
[[ $1 != *gpu_missing.py ]] || printf '%s\n' hjson==3.1.0 einops==0.8.2
[[ $1 != *.py ]] || printf '%s\n' "$PYTHONPATH" >>"$CALLS.path"
"""


@pytest.mark.parametrize(
    ("words", "script"), [(["--plan"], "gpu.py --plan"), (["two", "--plan"], "gpu_two.py --plan")]
)
@pytest.mark.parametrize("wheels", [True, False])
def test_the_shell_front_puts_what_is_missing_beside_the_image(
    words: list[str],
    script: str,
    wheels: bool,
    tmp_path: Path,
    run_process: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    stub, site, calls = tmp_path / "python3", tmp_path / "site", tmp_path / "calls"
    stub.write_text(PYTHON)
    stub.chmod(0o755)
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "hjson-3.1.0-py3-none-any.whl").touch()
    env = {
        "PYTHON": str(stub),
        "SITE": str(site),
        "CALLS": str(calls),
        "WHEELS": str(folder) if wheels else "",
    }
    done = run_process(
        ["bash", ROOT / "benchmarks" / "gpu.sh", *words],
        env={**env, "PYTHONPATH": "/theirs"},
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    *before, install, run = calls.read_text().splitlines()
    assert run == f"{ROOT}/benchmarks/{script}"
    options = (
        "--no-index --no-deps --no-compile --no-cache-dir" if wheels else "--no-deps --no-compile"
    )
    what = f"{folder}/hjson-3.1.0-py3-none-any.whl" if wheels else "hjson==3.1.0 einops==0.8.2"
    assert install == f"-m pip install -q {options} --target {site} {what}"
    assert len(before) == (not wheels)
    assert (tmp_path / "calls.path").read_text().splitlines()[-1] == f"{ROOT}:{site}:/theirs"


@pytest.mark.slow
def test_parts_run_through_on_a_pretended_device(
    tmp_path: Path, run_process: Callable[..., Any]
) -> None:
    words = [
        sys.executable,
        ROOT / "benchmarks" / "gpu.py",
        "--pretend",
        "--only",
        "machine",
        "clipping",
        "--out",
        tmp_path,
    ]
    done = run_process(words, timeout=170, env={"PYTHONPATH": os.pathsep.join([str(ROOT)])})
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [part["status"] for part in results["parts"]] == ["done", "done"]
    table = results["parts"][1]["items"][1]["facts"]
    assert {"torch.sum", "yolods, ZeRO-1/2", "stock, ZeRO-3"} <= table.keys()
    assert all(part["of the bandwidth, %"] > 0 for part in table.values() if isinstance(part, dict))
