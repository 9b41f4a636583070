"""MLflow: parameters, curves, pictures and best.pt. `MLFLOW_*` variables apply."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolods.telemetry.sinks.sink import RunFacts, Sink, flat

_IDENTITY = "yolods.run"
"""Tag with the run's identity, by which a resume finds it."""
_PARAM_CHARACTERS, _BATCH = 500, 100
"""MLflow's limits: characters of a parameter's value, and parameters per call."""


class Mlflow(Sink):
    """A run of MLflow, through the client, whose calls do not depend on the thread."""

    def __init__(self, facts: RunFacts) -> None:
        import mlflow
        from mlflow.entities import Metric, Param, ViewType

        self._metric, self._param = Metric, Param
        server, folder = os.environ.get("MLFLOW_TRACKING_URI"), facts.folder.absolute()
        # Without a server, MLflow would write into the working directory.
        place = server or f"sqlite:///{folder / 'mlflow.db'}"
        files = None if server else (folder / "mlruns").as_uri()
        self._client = client = mlflow.MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "yolods")
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name, files)
        query = f"tags.`{_IDENTITY}` = '{facts.run}'"
        runs = client.search_runs([experiment], query, run_view_type=ViewType.ACTIVE_ONLY)
        run = (
            runs[0]
            if runs
            else client.create_run(experiment, run_name=facts.name, tags={_IDENTITY: facts.run})
        )
        self._id = run.info.run_id
        client.set_terminated(self._id, status="RUNNING")

    def config(self, config: Mapping[str, Any]) -> None:
        params = [
            self._param(_named(key), str(value)[:_PARAM_CHARACTERS])
            for key, value in flat(config).items()
        ]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._id, params=params[start : start + _BATCH])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [self._metric(_named(tag), value, now, step) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=points)

    def picture(self, tag: str, file: Path, step: int) -> None:
        self._client.log_artifact(self._id, str(file), artifact_path=f"pictures/{Path(tag).parent}")

    def finish(self, metrics: Mapping[str, float], model: Path | None) -> None:
        for tag, value in metrics.items():
            self._client.log_metric(self._id, f"best/{_named(tag)}", value)
        if model is not None:
            self._client.log_artifact(self._id, str(model), artifact_path="weights")
        self._client.set_terminated(self._id)

    def close(self) -> None:
        """Nothing is left: every call is complete when it returns."""


def _named(tag: str) -> str:
    """A name without the characters that MLflow refuses: metrics/mAP50 for metrics/mAP50(B)."""
    return re.sub(r"[^\w\-. /]", "", tag)
