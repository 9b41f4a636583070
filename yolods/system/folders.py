"""The folders that yolods uses outside a run's folder: one cache, and ultralytics' settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from yolods.errors import OwnError


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The cache's folder, which may not exist yet.

    `YOLODS_CACHE` names it; otherwise it is `yolods` in `XDG_CACHE_HOME` or in `~/.cache`.

    Args:
        environ: environment; default: this process's own.

    Raises:
        OwnError: no variable names it, and this user has no home.
    """
    variables = os.environ if environ is None else environ
    if own := variables.get("YOLODS_CACHE"):
        return Path(os.path.expanduser(own))
    shared = variables.get("XDG_CACHE_HOME")
    # The XDG specification tells programs to ignore a relative path there.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "yolods"
    if (folder := home()) is None:
        raise OwnError(
            "no folder for the cache: HOME is not set, and this user has no home; set YOLODS_CACHE "
            "to a writable folder"
        )
    return folder / ".cache" / "yolods"


def home() -> Path | None:
    """This user's home folder; None: the user has none, for example because it has no passwd
    entry."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def ultralytics_folders(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Folders in which the user's ultralytics may keep its settings and fonts, the default last.

    The first one is this process's own, because `YOLO_CONFIG_DIR` then points to the cache.
    """
    variables = os.environ if environ is None else environ
    homes = (variables.get("YOLO_CONFIG_DIR"), variables.get("XDG_CONFIG_HOME"), "~/.config")
    return [Path(os.path.expanduser(home)) / "Ultralytics" for home in homes if home]
