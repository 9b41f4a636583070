"""Comet: which of its calls are made; the package itself is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from yolods.telemetry.sinks.comet import Comet
from yolods.telemetry.sinks.sink import RunFacts

FACTS = RunFacts("a" * 32, "s", Path("runs/exp"))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The service's package."""
    stand_in = MagicMock()
    for name in ("comet_ml",):
        monkeypatch.setitem(sys.modules, name, stand_in)
    for name in ("COMET_PROJECT_NAME", "COMET_MODE"):
        monkeypatch.delenv(name, raising=False)
    return stand_in


@pytest.mark.parametrize(("mode", "online"), [("", True), ("offline", False)])
def test_an_experiment_has_our_identity(package, monkeypatch, tmp_path, mode, online):
    monkeypatch.setenv("COMET_MODE", mode)
    sink, experiment = Comet(FACTS), package.start.return_value
    opened = package.start.call_args.kwargs
    assert (opened["experiment_key"], opened["mode"]) == (FACTS.run, "get_or_create")
    assert (opened["online"], opened["project_name"]) == (online, "yolods")
    settings = package.ExperimentConfig.call_args.kwargs
    assert settings["name"] == "exp"
    assert settings["offline_directory"] == (None if online else "runs/exp/comet")
    sink.config({"a": {"b": 1}})
    experiment.log_parameters.assert_called_once_with({"a.b": 1})
    sink.scalars({"x": 1.0}, 7)
    experiment.log_metrics.assert_called_once_with({"x": 1.0}, step=7)
    sink.picture("p", tmp_path / "p.jpg", 3)
    assert experiment.log_image.call_args.kwargs == {"name": "p", "step": 3}
    sink.finish({"m": 0.5}, tmp_path / "best.pt")
    experiment.log_model.assert_called_once_with("best", str(tmp_path / "best.pt"))
    sink.close()
    experiment.end.assert_called_once_with()
