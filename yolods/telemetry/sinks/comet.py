"""Comet: parameters, curves, pictures and best.pt. `COMET_*` variables apply."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolods.telemetry.sinks.sink import RunFacts, Sink, flat


class Comet(Sink):
    """An experiment of Comet with the identity of our run, so that a resume goes on with it."""

    def __init__(self, facts: RunFacts) -> None:
        import comet_ml

        offline = os.environ.get("COMET_MODE") == "offline"
        self._experiment = comet_ml.start(
            project_name=os.environ.get("COMET_PROJECT_NAME", "yolods"),
            experiment_key=facts.run,
            mode="get_or_create",
            online=not offline,
            experiment_config=comet_ml.ExperimentConfig(
                name=facts.name,
                offline_directory=str(facts.folder / "comet") if offline else None,
                log_code=False,
                log_graph=False,
                parse_args=False,
                auto_metric_logging=False,
                auto_param_logging=False,
                auto_histogram_weight_logging=False,
                auto_output_logging=False,
            ),
        )

    def config(self, config: Mapping[str, Any]) -> None:
        self._experiment.log_parameters(flat(config))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._experiment.log_metrics(dict(values), step=step)

    def picture(self, tag: str, file: Path, step: int) -> None:
        self._experiment.log_image(str(file), name=tag, step=step)

    def finish(self, metrics: Mapping[str, float], model: Path | None) -> None:
        self._experiment.log_metrics({f"best/{tag}": value for tag, value in metrics.items()})
        if model is not None:
            self._experiment.log_model("best", str(model))

    def close(self) -> None:
        self._experiment.end()
