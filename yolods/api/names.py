"""What `import yolods` offers, imported when it is used: the command line and the ranks need none
of it."""

from __future__ import annotations

import importlib
from typing import Any

PUBLIC = {
    "train": "yolods.api.call",
    "CallError": "yolods.api.outcome",
    "RunFailed": "yolods.api.outcome",
    "Trained": "yolods.api.outcome",
}
"""Name in the package -> the module that has it."""


def late(name: str) -> Any:
    """The `__getattr__` of the package (PEP 562).

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in PUBLIC:
        raise AttributeError(f"module 'yolods' has no attribute '{name}'")
    # A name and no import statement: all of yolods stands above its own package.
    return getattr(importlib.import_module(PUBLIC[name]), name)
