"""The real command as a user starts it in a folder, and with a fault planted in a rank where a test
asks for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.forks import ROOT, environment

popen: type[subprocess.Popen] = subprocess.Popen
"""What starts commands: exec as benchmarks use them, a fork (tests.forks.Popen) under the fixture
`forked_launches`."""


def launched(
    words: Sequence[str], folder: Path, hurt: Mapping[str, object] | None = None
) -> subprocess.Popen[str]:
    """Start `yolods launch train`, and do not wait for it.

    Args:
        words: flags of the training.
        folder: where it is typed.
        hurt: the plan for `hurt/sitecustomize.py`.

    Returns:
        the process, in a session of its own; both of its streams come as one through `stdout`.
    """
    variables = environment()
    if hurt is not None:
        path = f"{ROOT / 'tests/faults/hurt'}{os.pathsep}{variables['PYTHONPATH']}"
        variables |= {"HURT": json.dumps(hurt), "PYTHONPATH": path}
    return popen(
        [sys.executable, "-m", "yolods", "launch", "train", *words],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
