"""Where yolods writes outside a run's folder: one cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from yolods.errors import OwnError


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The cache's folder; it may not exist yet.

    `YOLODS_CACHE` names it; otherwise it is `yolods` in `XDG_CACHE_HOME`, or in `~/.cache`.

    Args:
        environ: variables to read; this process' own by default.

    Raises:
        OwnError: nothing names it, and this user has no home.
    """
    variables = os.environ if environ is None else environ
    if own := variables.get("YOLODS_CACHE"):
        return Path(os.path.expanduser(own))
    shared = variables.get("XDG_CACHE_HOME")
    # The XDG convention is that a relative path there is to be ignored.
    if shared and Path(shared).is_absolute():
        return Path(shared) / "yolods"
    if (folder := home()) is None:
        raise OwnError(
            "no place for the cache: HOME is not set, and this user has no home; set YOLODS_CACHE to a folder that can "
            "be written"
        )
    return folder / ".cache" / "yolods"


def home() -> Path | None:
    """This user's own folder; None: there is none, as for a user that the machine does not know."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def ultralytics_folders(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Where a user's ultralytics may keep its settings and fonts; the last is where it does by default.

    Our own process' settings, which `YOLO_CONFIG_DIR` then names in the cache, come first.
    """
    variables = os.environ if environ is None else environ
    homes = (variables.get("YOLO_CONFIG_DIR"), variables.get("XDG_CONFIG_HOME"), "~/.config")
    return [Path(os.path.expanduser(home)) / "Ultralytics" for home in homes if home]
