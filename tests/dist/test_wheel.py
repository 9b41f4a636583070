"""A wheel of this tree, installed where the tree cannot be imported: what it holds, and that it
trains."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

from tests.dist.commands import SMALL
from yolods import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(220)]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("yolods", "ds_configs", "hostfiles", "tests", "benchmarks")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "launch.sh")
GONE = Path("yolods", "gone.py")
"""A module that an earlier build has left."""
INFO = f"yolods-{__version__}.dist-info"
PIP = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check")
CONFIGURATIONS = sorted(file.name for file in (ROOT / "ds_configs").glob("*.json"))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, from a copy: pip builds where the sources lie."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in FOLDERS:
        copytree(ROOT / name, sources / name, ignore=ignore_patterns("__pycache__"))
    for name in FILES:
        copy(ROOT / name, sources)
    left = sources / "build" / "lib" / GONE
    left.parent.mkdir(parents=True)
    left.touch()
    _done(
        [
            *PIP,
            "wheel",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(sources),
        ]
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it, which borrows the packages of the tests' own, but not
    its yolods."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    _done(
        [*PIP, "--python", python, "install", "--no-index", "--no-deps", "--no-compile", str(wheel)]
    )
    # A folder that a .pth file names is on the path, but .pth files in it, such as an editable
    # install's, are not read.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (_packages(folder) / "borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
    return folder


def _done(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stdout + result.stderr


def _packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def _variables(environment: Path) -> dict[str, str]:
    """Those of a shell in which the environment is active, on a machine without GPUs."""
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def test_the_wheel_holds_the_package_and_what_it_reads_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = archive.read(f"{INFO}/entry_points.txt").decode()
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "yolods").rglob("*.py")}
    assert {name for name in names if not name.startswith(INFO)} == {
        *modules,
        *(f"yolods/ds_configs/{name}" for name in CONFIGURATIONS),
    }
    assert f"{INFO}/licenses/LICENSE" in names
    assert "yolods = yolods.__main__:run" in entry


def test_an_installation_has_nothing_of_the_checkout(
    environment: Path, run_process: Run, tmp_path: Path
) -> None:
    program = "import yolods; print(yolods.__file__)"
    result = run_process(
        [environment / "bin" / "python", "-c", program], cwd=tmp_path, env=_variables(environment)
    )
    assert result.stdout.strip() == str(_packages(environment) / "yolods" / "__init__.py"), (
        result.stderr
    )
    result = run_process(["yolods", "--help"], cwd=tmp_path, env=_variables(environment))
    assert (result.returncode, result.stderr) == (0, "")
    assert "yolods launch train" in result.stdout and "launch.sh" not in result.stdout


def test_an_installation_trains_through_the_launcher(
    environment: Path, run_process: Run, tmp_path: Path
) -> None:
    words = [
        "--data",
        "demo",
        *SMALL,
        "--epochs",
        "1",
        "--deepspeed_config",
        "zero1_fp32",
        "--noplots",
    ]
    short = [part for value in ("fraction=8", "nbs=4", "precise_bn=0") for part in ("--set", value)]
    command = [
        "yolods",
        "launch",
        "train",
        "--num_gpus",
        "1",
        "--max_restarts",
        "0",
        *words,
        *short,
    ]
    result = run_process(command, cwd=tmp_path, env=_variables(environment), timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    run = tmp_path / "runs" / "exp"
    assert len(list(csv.reader((run / "results.csv").open(encoding="utf-8")))) == 2
    left = ("weights/best.pt", "weights/last.pt", "checkpoints/latest", "config.json", "train.log")
    assert [name for name in left if not (run / name).is_file()] == []
    # The ranks have read the configuration that was installed, and so were not of this tree.
    said = (run / "config.json").read_text(encoding="utf-8")
    assert str(_packages(environment) / "yolods" / "ds_configs" / "zero1_fp32.json") in said
    assert str(ROOT) not in said
