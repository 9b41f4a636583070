"""Where yolods writes outside a run's folder: one cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The cache's folder; it may not exist yet.

    `YOLODS_CACHE` names it; otherwise it is `yolods` in `XDG_CACHE_HOME`, or in `~/.cache`.

    Args:
        environ: variables to read; this process' own by default.
    """
    variables = os.environ if environ is None else environ
    if own := variables.get("YOLODS_CACHE"):
        return Path(own).expanduser()
    shared = variables.get("XDG_CACHE_HOME")
    # The XDG convention is that a relative path there is to be ignored.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "yolods"
    return Path("~/.cache").expanduser() / "yolods"


def ultralytics_folders(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Where a user's ultralytics may keep its settings and fonts; the last is where it does by default.

    Our own process' settings, which `YOLO_CONFIG_DIR` then names in the cache, come first.
    """
    variables = os.environ if environ is None else environ
    homes = (variables.get("YOLO_CONFIG_DIR"), variables.get("XDG_CONFIG_HOME"), "~/.config")
    return [Path(os.path.expanduser(home)) / "Ultralytics" for home in homes if home]
