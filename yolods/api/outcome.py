"""What a call returns or raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yolods.errors import UserError

_SHOWN = ("metrics/mAP50(B)", "metrics/mAP50-95(B)")


@dataclass(frozen=True)
class Trained:
    """A finished run. `print` shows it in a few lines."""

    folder: Path
    """The run's folder; docs/outputs.md describes its files."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final metrics of best.pt, under the names in results.csv; empty if rank 0 ran on a host whose
    files cannot be seen here."""
    epochs: int = 0
    """Epochs that are finished, those before a resume included."""
    seconds: float = 0.0
    """Seconds of training, those before a resume included."""

    @property
    def best(self) -> Path:
        """The best model, which `ultralytics.YOLO()` loads."""
        return self.folder / "weights" / "best.pt"

    @property
    def last(self) -> Path:
        """The model after the last epoch."""
        return self.folder / "weights" / "last.pt"

    def __str__(self) -> str:
        scores = ", ".join(
            f"{name.removeprefix('metrics/').removesuffix('(B)')} {self.metrics[name]:.3f}"
            for name in _SHOWN
            if name in self.metrics
        )
        done = f"{self.epochs} epoch{'s' * (self.epochs != 1)} in {self.seconds:.0f} s"
        return "\n".join(
            [
                f"{self.folder}: {done}{', ' * bool(scores)}{scores}",
                f"  model    {self.best}",
                f"  numbers  {self.folder / 'results.csv'}",
            ]
        )


class CallError(UserError):
    """Wrong words or files: one line per fault. Nothing was trained."""

    __module__ = "yolods"  # what a traceback shows, and where callers find it

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, which has nothing to say here."""
        return [f"error: {line}" for line in str(self).splitlines()]


class RunFailed(RuntimeError):
    """The run began and did not finish; a checkpoint may be there to go on from."""

    __module__ = "yolods"

    def __init__(self, text: str, *, status: int, folder: Path | None) -> None:
        super().__init__(text)
        self.status = status
        """Exit status of the launcher, as a shell shows it."""
        self.folder = folder
        """The run's folder; None: it had none yet."""
