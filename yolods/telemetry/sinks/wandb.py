"""Weights & Biases: curves, pictures, and best.pt as an artifact. `WANDB_*` variables apply."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolods.telemetry.sinks.sink import RunFacts, Sink


class Wandb(Sink):
    """A run of W&B with the identity of ours, so that a resume goes on with it."""

    def __init__(self, facts: RunFacts) -> None:
        import wandb

        self._wandb, self._facts = wandb, facts
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "yolods"),
            id=facts.run,
            name=facts.name,
            resume="allow",
            dir=str(facts.folder),
            # Our console and log are the run's; W&B would put itself between them.
            settings=wandb.Settings(console="off", silent=True),
        )
        self._step = 0

    def config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._step = max(step, self._step)
        self._run.log(dict(values), step=step)

    def picture(self, tag: str, file: Path, step: int) -> None:
        # W&B takes no earlier step than its last one.
        self._run.log({tag: self._wandb.Image(str(file))}, step=max(step, self._step))

    def finish(self, metrics: Mapping[str, float], model: Path | None) -> None:
        self._run.summary.update(dict(metrics))
        if model is not None:
            artifact = self._wandb.Artifact(f"run_{self._facts.run}_model", type="model")
            artifact.add_file(str(model))
            self._run.log_artifact(artifact, aliases=["best"])

    def close(self) -> None:
        self._run.finish()
