"""MLflow: which of its calls are made; the package itself is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from yolods.telemetry.sinks.mlflow import Mlflow
from yolods.telemetry.sinks.sink import RunFacts

FACTS = RunFacts("a" * 32, "s", Path("runs/exp"))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The service's package."""
    stand_in = MagicMock()
    for name in ("mlflow", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return stand_in


def test_without_a_server_everything_is_in_the_runs_folder(package):
    Mlflow(FACTS)
    place = package.MlflowClient.call_args.kwargs["tracking_uri"]
    assert place == f"sqlite:///{Path('runs/exp').absolute()}/mlflow.db"


def test_a_new_run_is_created_and_a_known_one_is_gone_on_with(package, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    client = package.MlflowClient.return_value
    client.search_runs.return_value = []
    Mlflow(FACTS)
    assert package.MlflowClient.call_args.kwargs == {"tracking_uri": "http://server"}
    assert client.create_run.call_args.kwargs["tags"] == {"yolods.run": FACTS.run}
    client.search_runs.return_value = [MagicMock()]
    client.create_run.reset_mock()
    Mlflow(FACTS)
    client.create_run.assert_not_called()


def test_its_limits_are_kept(package, tmp_path):
    client = package.MlflowClient.return_value
    sink = Mlflow(FACTS)
    sink.config({f"k{n}": "x" * 900 for n in range(250)})
    sizes = [len(call.kwargs["params"]) for call in client.log_batch.call_args_list]
    assert sizes == [100, 100, 50]
    _, value = package.Param.call_args.args
    assert len(value) == 500
    sink.scalars({"metrics/mAP50(B)": 0.5}, 3)
    name, value, _, step = package.Metric.call_args.args
    assert (name, value, step) == ("metrics/mAP50B", 0.5, 3)
    sink.picture("train/labels", tmp_path / "labels.jpg", 0)
    sink.finish({"metrics/mAP50(B)": 0.5}, tmp_path / "best.pt")
    assert client.log_metric.call_args.args[1:] == ("best/metrics/mAP50B", 0.5)
    assert client.log_artifact.call_args.kwargs == {"artifact_path": "weights"}
    sink.close()
