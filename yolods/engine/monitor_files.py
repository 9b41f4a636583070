"""Tells the monitoring services that DeepSpeed reports to where to put a run's files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def announce_folders(variables: Mapping[str, str]) -> None:
    """Create each folder and set its variable, unless the user has set it.

    Args:
        variables: `RunConfig.monitor_folders`.
    """
    for variable, folder in variables.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(variable, folder)
