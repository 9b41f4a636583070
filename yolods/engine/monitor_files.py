"""Tells services that DeepSpeed reports to where a run's files belong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def announce_folders(variables: Mapping[str, str]) -> None:
    """Make each folder and set its variable. One that the user has set already stays.

    Args:
        variables: `RunConfig.monitor_folders`.
    """
    for variable, folder in variables.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(variable, folder)
