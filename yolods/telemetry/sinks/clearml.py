"""ClearML: a task with parameters, curves, pictures and best.pt. `CLEARML_*` variables apply."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolods.telemetry.sinks.sink import RunFacts, Sink, flat


class Clearml(Sink):
    """A task of ClearML, without its hooks into torch, TensorBoard and argparse."""

    def __init__(self, facts: RunFacts) -> None:
        from clearml import Task

        # Its offline mode has no models (clearml 2.1.12).
        self._takes_models = not Task.is_offline()
        project = os.environ.get("CLEARML_PROJECT", "yolods")
        known = self._takes_models and Task.get_tasks(project_name=project, tags=[facts.run])
        self._task = Task.init(
            project_name=project,
            task_name=facts.name,
            tags=["yolods", facts.run],
            continue_last_task=known[0].id if known else False,
            reuse_last_task_id=False,
            auto_connect_frameworks=False,
            auto_connect_arg_parser=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
        )
        # A resumed run already counts its steps from the beginning; ClearML would add its own last.
        self._task.set_initial_iteration(0)

    def config(self, config: Mapping[str, Any]) -> None:
        self._task.set_parameters(
            {key: value for key, value in flat(config).items() if value is not None}
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        logger = self._task.get_logger()
        for tag, value in values.items():
            title, _, series = tag.partition("/")
            logger.report_scalar(title, series or title, value, step)

    def picture(self, tag: str, file: Path, step: int) -> None:
        title, _, series = tag.partition("/")
        self._task.get_logger().report_image(
            title, series or title, step, local_path=str(file), delete_after_upload=False
        )

    def finish(self, metrics: Mapping[str, float], model: Path | None) -> None:
        for tag, value in metrics.items():
            self._task.get_logger().report_single_value(tag, value)
        if model is not None and self._takes_models:
            # By default ClearML deletes the file after the upload.
            self._task.update_output_model(
                model_path=str(model), model_name=model.name, auto_delete_file=False
            )

    def close(self) -> None:
        self._task.close()
