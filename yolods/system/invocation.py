"""How yolods was started, for messages that tell a user what to type next."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from yolods.system.files import replace_text

LAUNCH = ("yolods", "launch")
"""The launcher's command without launch.sh, as after `pip install`."""
SCRIPT = "YOLODS_LAUNCH_SCRIPT"
"""Variable in which launch.sh passes its own path, as it was typed."""

CALLER = "YOLODS_CALLER"
"""Variable in which `yolods.train` passes the file that names the run's folder."""


def called() -> Path | None:
    """The file of the Python call that started this launcher; None: there was none.

    The variable is removed, so that the ranks do not see it.
    """
    path = os.environ.pop(CALLER, None)
    return Path(path) if path else None


def tell_caller(file: Path | None, run_dir: Path, start: str) -> None:
    """Name the run's folder and its start to the Python call that started this launcher."""
    if file is not None:
        replace_text(file, json.dumps([str(run_dir.absolute()), start]))


def script(environ: Mapping[str, str] | None = None) -> str | None:
    """Path of the launch.sh that started this process, quoted for a shell; None: there was none.

    Args:
        environ: environment; default: this process's own.
    """
    path = (os.environ if environ is None else environ).get(SCRIPT)
    return shlex.quote(path) if path else None


def launch_command(*words: str, environ: Mapping[str, str] | None = None) -> str:
    """A command of the launcher, quoted for a shell: `words` after launch.sh or `yolods launch`.

    Args:
        words: a subcommand and its flags; none: only the beginning of the command.
        environ: as in `script`.
    """
    return " ".join([script(environ) or shlex.join(LAUNCH), *map(shlex.quote, words)])
