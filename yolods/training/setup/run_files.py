"""A run's folder before its first step: room on the disk, and config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from yolods.config import RunConfig
from yolods.config.run import CONFIG_FILE
from yolods.config.run_folder import writable
from yolods.errors import UserError
from yolods.system.files import replace_text
from yolods.training.provenance import Provenance

BYTES_A_PARAMETER = 40
"""Bytes per parameter on disk: masters, two moments and the moving average, all of them a second
time in the snapshot, and the .pt files."""


def prepare_folder(config: RunConfig, parameters: int) -> None:
    """Create the run folder, and check that its disk has room for what the run writes."""
    with writable(config.run_dir):
        if config.only_traced:
            config.run_dir.mkdir(exist_ok=True)
            return
        (config.run_dir / "weights").mkdir(parents=True, exist_ok=True)
        policy = config.deepspeed.own.checkpoint
        each = BYTES_A_PARAMETER
        if config.deepspeed.own.compression.kind != "none":
            # What every rank has not sent yet of its gradients, and a second time in the snapshot.
            each += 8 * config.deepspeed.dp_size
        _check_space(config.run_dir, parameters, policy.keep + policy.keep_best, each)


def _check_space(folder: Path, parameters: int, keep: int, each: int = BYTES_A_PARAMETER) -> None:
    # One more than is kept: a new checkpoint is complete before an old one is removed.
    needed = parameters * each * (keep + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**30:.2f} GiB are free, but {keep + 1} checkpoints of "
            f"{parameters / 1e6:.1f} M parameters x {each} bytes need "
            f"{needed / 2**30:.2f} GiB; free some space, or choose another --project"
        )


def write_config(config: RunConfig, origin: Provenance) -> None:
    """Write config.json: everything that determines the run, and the versions and devices."""
    if config.only_traced:  # the run keeps its own
        return
    with writable(config.run_dir):
        text = json.dumps(config_record(config, origin), indent=2)
        replace_text(config.run_dir / CONFIG_FILE, text)


def config_record(config: RunConfig, origin: Provenance) -> dict[str, Any]:
    """The content of config.json."""
    return {**json.loads(config.to_json()), "provenance": origin.as_dict()}
