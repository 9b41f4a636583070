"""How yolods was started, for messages that tell a user what to type next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

LAUNCH = ("yolods", "launch")
"""How the launcher is called without launch.sh, as after `pip install`."""
SCRIPT = "YOLODS_LAUNCH_SCRIPT"
"""Variable in which launch.sh hands on its own path, as it was typed."""


def script(environ: Mapping[str, str] | None = None) -> str | None:
    """The path of the launch.sh that has started this, ready for a shell; None: something else has.

    Args:
        environ: variables to read; this process' own by default.
    """
    path = (os.environ if environ is None else environ).get(SCRIPT)
    return shlex.quote(path) if path else None


def launch_command(*words: str, environ: Mapping[str, str] | None = None) -> str:
    """A command of the launcher, ready for a shell: `words` after the path of launch.sh, or after `yolods launch`.

    Args:
        words: a subcommand and its flags; none: what a user types before them.
        environ: as in `script`.
    """
    return " ".join([script(environ) or shlex.join(LAUNCH), *map(shlex.quote, words)])
