"""The interface of a service that receives a run's curves, such as Weights & Biases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFacts:
    """The run that a service shows."""

    run: str
    """The run's identity, the same over all its starts: 32 hexadecimal digits."""
    start: str
    """The identity of the command that started the ranks."""
    folder: Path
    """The run's folder, in which a service keeps its local files."""

    @property
    def name(self) -> str:
        """What a person calls the run: the name of its folder."""
        return self.folder.name


class Sink(ABC):
    """One service. The constructor opens the run there, or goes on with it after a resume.

    All calls come from one thread of rank 0, in the order of the run, each thing once over all
    starts. A method may raise anything: the service is then left out for the rest of the run, with
    one warning.
    """

    @abstractmethod
    def __init__(self, facts: RunFacts) -> None:
        """Open the run; imports the service's package."""

    @abstractmethod
    def config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved configuration, which is nested."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point at an optimizer step to each curve; losses and metrics are named as in
        results.csv."""

    @abstractmethod
    def picture(self, tag: str, file: Path, step: int) -> None:
        """Add a .jpg or .png; the run may overwrite the file later."""

    @abstractmethod
    def finish(self, metrics: Mapping[str, float], model: Path | None) -> None:
        """Record the final metrics of best.pt, and the file itself if there is one."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left, and end the connection."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; other values stay as they are."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
