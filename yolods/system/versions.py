"""Versions of what computes: a run tells them, and its checkpoints carry them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from yolods import __version__

PACKAGES = ("torch", "deepspeed", "ultralytics", "numpy")
"""Whose versions decide what a step computes."""


def versions() -> dict[str, str]:
    """Of yolods, python and `PACKAGES`; "unknown" where one is imported from a folder without metadata."""
    return {"yolods": __version__, "python": platform.python_version(), **{name: _of(name) for name in PACKAGES}}


def _of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
