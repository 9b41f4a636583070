"""How yolods was started, for messages that tell a user what to type next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

LAUNCH = ("yolods", "launch")
"""The launcher's command without launch.sh, as after `pip install`."""
SCRIPT = "YOLODS_LAUNCH_SCRIPT"
"""Variable in which launch.sh passes its own path, as it was typed."""


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
