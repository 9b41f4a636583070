"""Makes DeepSpeed's own monitors write into the run's folder, whatever the JSON says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "deepspeed"
"""Their folder within the run's folder."""
_VARIABLES = {"wandb": "WANDB_DIR", "comet": "COMET_OFFLINE_DIRECTORY"}
"""Services whose block has no key for a folder -> the environment variable that names it."""


def kept_within(run_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for `deepspeed.initialize`, with every output path below `run_dir`."""
    folder, kept = run_dir / FOLDER, dict(settings)
    for block in ("tensorboard", "csv_monitor"):
        if _on(settings, block):
            kept[block] = {**settings[block], "output_path": str(folder)}
    if _on(settings, "flops_profiler"):
        # Without a file the profile would go to the screen, in between the lines of the run.
        name = (
            Path(settings["flops_profiler"].get("output_file") or "").name or "flops_profiler.txt"
        )
        kept["flops_profiler"] = {**settings["flops_profiler"], "output_file": str(folder / name)}
    return kept


def folder_variables(run_dir: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables of the enabled services -> the folder to set."""
    folder = str(run_dir / FOLDER)
    return {variable: folder for block, variable in _VARIABLES.items() if _on(settings, block)}


def _on(settings: Mapping[str, Any], block: str) -> bool:
    return bool((settings.get(block) or {}).get("enabled"))
