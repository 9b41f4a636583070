"""Versions of the packages that compute, for the log and the checkpoints."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from yolods import __version__

PACKAGES = ("torch", "deepspeed", "ultralytics", "numpy")
"""Packages whose versions affect the result of a step."""


def versions() -> dict[str, str]:
    """Versions of yolods, Python and `PACKAGES`; "unknown" for a package without metadata."""
    return {
        "yolods": __version__,
        "python": platform.python_version(),
        **{name: _of(name) for name in PACKAGES},
    }


def _of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
