"""--loggers: names, packages that are missing, and what a resume does with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolods.commands.parsers import train_parser
from yolods.config import RunConfig, build_run_config
from yolods.config.loggers import LOGGERS, read_loggers
from yolods.errors import Faults, UserError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are found."""
    packages = {"wandb", "mlflow"}
    found = importlib.util.find_spec

    def find(name: str) -> object:
        if name not in LOGGERS.values():
            return found(name)
        return SimpleNamespace(origin="__init__.py") if name in packages else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    return packages


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, ()),
        ("", ()),
        ("none", ()),
        ("wandb", ("wandb",)),
        ("MLflow, wandb,mlflow,jsonl", ("mlflow", "wandb", "jsonl")),
    ],
)
def test_names_are_read_once_each(installed, text, names):
    faults = Faults()
    assert read_loggers(text, faults) == names
    assert not faults


def test_unknown_names_and_missing_packages_are_refused_together(installed):
    faults = Faults()
    read_loggers("wandbb,comet,clearml", faults)
    unknown, comet, clearml = faults
    assert unknown.startswith("--loggers wandbb: unknown (did you mean 'wandb'?); known: wandb, ")
    assert comet.endswith("comet_ml is not installed; pip install comet-ml, or omit comet")
    assert "the package clearml is not installed" in clearml


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "comet_ml").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    faults = Faults()
    read_loggers("comet", faults)
    assert len(faults) == 1


def configured(*words: str) -> RunConfig:
    return build_run_config(train_parser().read(words), world_size=1, device="cpu")


def test_a_resume_keeps_them_unless_told_otherwise(installed, tmp_path: Path):
    words = ("--data", "demo", "--imgsz", "64", "--project", str(tmp_path))
    config = configured(*words, "--loggers", "wandb,jsonl")
    assert config.loggers == ("wandb", "jsonl")
    run = tmp_path / "exp"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    assert configured("--resume", str(run)).loggers == ("wandb", "jsonl")
    assert configured("--resume", str(run), "--loggers", "mlflow").loggers == ("mlflow",)
    assert configured("--resume", str(run), "--loggers", "none").loggers == ()
    installed.remove("wandb")
    with pytest.raises(UserError, match="the package wandb is not installed"):
        configured("--resume", str(run))
