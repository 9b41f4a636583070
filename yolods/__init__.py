"""yolods: trains YOLOv5 detectors on DeepSpeed and returns an ordinary best.pt.

From Python: `yolods.train(data="demo", epochs=1)` (docs/python.md).
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_FROM_API = ("train", "CallError", "RunFailed", "Trained")
"""Names of `yolods.api`, which is imported when one of them is used."""


def __getattr__(name: str) -> Any:
    """Import what a caller from Python uses; the command line and the ranks need none of it."""
    if name in _FROM_API:
        return getattr(importlib.import_module("yolods.api"), name)
    raise AttributeError(f"module 'yolods' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM_API])
