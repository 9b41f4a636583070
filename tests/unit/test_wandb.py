"""Weights & Biases: which of its calls are made; the package itself is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from yolods.telemetry.sinks.sink import RunFacts
from yolods.telemetry.sinks.wandb import Wandb

FACTS = RunFacts("a" * 32, "s", Path("runs/exp"))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The service's package."""
    stand_in = MagicMock()
    for name in ("wandb",):
        monkeypatch.setitem(sys.modules, name, stand_in)
    for name in ("WANDB_PROJECT",):
        monkeypatch.delenv(name, raising=False)
    return stand_in


def test_a_run_has_our_identity_and_steps_never_go_back(package, tmp_path):
    sink, run = Wandb(FACTS), package.init.return_value
    opened = package.init.call_args.kwargs
    assert (opened["id"], opened["name"], opened["resume"]) == (FACTS.run, "exp", "allow")
    assert (opened["project"], opened["dir"]) == ("yolods", "runs/exp")
    sink.config({"a": {"b": 1}})
    run.config.update.assert_called_once_with({"a": {"b": 1}}, allow_val_change=True)
    sink.scalars({"x": 1.0}, 7)
    run.log.assert_called_with({"x": 1.0}, step=7)
    sink.picture("p", tmp_path / "p.jpg", 3)
    assert run.log.call_args.kwargs == {"step": 7}
    sink.finish({"m": 0.5}, tmp_path / "best.pt")
    run.summary.update.assert_called_once_with({"m": 0.5})
    package.Artifact.return_value.add_file.assert_called_once_with(str(tmp_path / "best.pt"))
    sink.close()
    run.finish.assert_called_once_with()


def test_without_a_model_there_is_no_artifact(package):
    Wandb(FACTS).finish({}, None)
    package.Artifact.assert_not_called()
