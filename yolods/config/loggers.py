"""The names of --loggers, and the package that each needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType

from yolods.errors import Faults, nearest

LOGGERS: Mapping[str, str | None] = MappingProxyType(
    {"wandb": "wandb", "mlflow": "mlflow", "clearml": "clearml", "comet": "comet_ml", "jsonl": None}
)
"""Name -> the package to import; None: none is needed. `telemetry/sinks` has a class for each."""

_PIP = {"comet_ml": "comet-ml"}
"""Packages that pip knows under another name."""


def read_loggers(text: str | None, faults: Faults) -> tuple[str, ...]:
    """The names in `wandb,mlflow`, each once; unknown ones and missing packages become faults.

    Args:
        text: the value of --loggers; None: not given. An empty value, or `none`, means no logger.
    """
    words = [word.strip().lower() for word in (text or "").split(",")]
    names = [word for word in dict.fromkeys(words) if word not in ("", "none")]
    for name in names:
        if name not in LOGGERS:
            faults.add(
                f"--loggers {name}: unknown{nearest(name, LOGGERS)}; known: {', '.join(LOGGERS)}"
            )
        elif package := _missing(name):
            faults.add(
                f"--loggers {name}: the package {package} is not installed; "
                f"pip install {_PIP.get(package, package)}, or omit {name}"
            )
    return tuple(name for name in names if name in LOGGERS)


def _missing(name: str) -> str | None:
    """The package that a logger needs and that is not installed; found without an import."""
    package = LOGGERS[name]
    found = importlib.util.find_spec(package) if package else None
    # A folder that W&B has left in the working directory is found as a package without a file.
    return package if package and (found is None or found.origin is None) else None
