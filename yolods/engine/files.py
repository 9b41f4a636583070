"""Where DeepSpeed's own monitors write: within the run's folder, whatever the JSON says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "deepspeed"
"""In the run's folder."""


def kept_within(run_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for `deepspeed.initialize`, with every file that is written by them below `run_dir`.

    wandb and comet know their folder by the environment; one that is set already stays.
    """
    folder, kept = run_dir / FOLDER, dict(settings)
    for block in ("tensorboard", "csv_monitor"):
        if _on(settings, block):
            kept[block] = {**settings[block], "output_path": str(folder)}
    if _on(settings, "flops_profiler"):
        name = Path(settings["flops_profiler"].get("output_file") or "").name or "flops_profiler.txt"
        kept["flops_profiler"] = {**settings["flops_profiler"], "output_file": str(folder / name)}
    for block, variable in (("wandb", "WANDB_DIR"), ("comet", "COMET_OFFLINE_DIRECTORY")):
        if _on(settings, block):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault(variable, str(folder))
    return kept


def _on(settings: Mapping[str, Any], block: str) -> bool:
    return bool((settings.get(block) or {}).get("enabled"))
