"""Calls the caller's functions under ultralytics' names, in the caller's process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yolods.errors import Faults, UserError, nearest, reason_of
from yolods.launch.supervisor import say
from yolods.telemetry.log import add_line

CALLED = (
    *("on_pretrain_routine_end", "on_train_start", "on_train_epoch_start", "on_train_epoch_end"),
    *("on_val_end", "on_model_save", "on_fit_epoch_end", "on_train_end", "teardown"),
)
"""The names that are called, in the order of a run."""

_ELSEWHERE = (
    *("on_pretrain_routine_start", "on_train_batch_start", "on_train_batch_end", "optimizer_step"),
    *("on_before_zero_grad", "on_params_update", "on_val_start", "on_val_batch_start"),
    "on_val_batch_end",
)
"""Names of ultralytics that are not called, because they belong inside a step."""

Callback = Callable[["Moment"], object]


# Wide: a fact about the run per field, under the names of ultralytics' trainer where it has one.
@dataclass(frozen=True, kw_only=True)
class Moment:
    """A run as a callback sees it, with the names of ultralytics' trainer."""

    save_dir: Path
    """The run's folder."""
    epochs: int = 0
    """Number of epochs of the run."""
    epoch: int = 0
    """The epoch, from 0."""
    step: int = 0
    """Optimizer steps so far."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics and validation losses of the epoch; at the end, the metrics of best.pt."""
    tloss: Mapping[str, float] = field(default_factory=dict)
    """Mean training losses of the epoch, such as train/box_loss."""
    lr: Mapping[str, float] = field(default_factory=dict)
    """Learning rates at the end of the epoch."""
    fitness: float | None = None
    """Fitness of the epoch; None: it was not evaluated."""
    best_fitness: float | None = None
    """The best of the epochs that this call has seen."""
    seconds: float = 0.0
    """Seconds of training, those before a resume included."""

    @property
    def best(self) -> Path:
        """best.pt, which may not exist yet."""
        return self.save_dir / "weights" / "best.pt"

    @property
    def last(self) -> Path:
        """last.pt, which may not exist yet."""
        return self.save_dir / "weights" / "last.pt"


class Callbacks:
    """The caller's functions, and what the run has told so far."""

    def __init__(self, given: Mapping[str, Callback | Iterable[Callback]]) -> None:
        """
        Args:
            given: a function, or several, by name of CALLED.

        Raises:
            UserError: `given` is no mapping; or one line for each name that is not called, and
                each value that is no function.
        """
        if not isinstance(given, Mapping):
            raise UserError(
                f"callbacks is a {type(given).__name__}: it must be a dict, such as "
                "{'on_fit_epoch_end': function}"
            )
        faults = Faults()
        self._given: dict[str, tuple[Callback, ...]] = {}
        for name, found in given.items():
            several = (found,) if callable(found) else tuple(found) if _many(found) else (found,)
            if name in _ELSEWHERE:
                faults.add(
                    f"callbacks: {name} is not called, because steps run in other processes; there "
                    f"are {', '.join(CALLED)}"
                )
            elif name not in CALLED:
                faults.add(
                    f"callbacks: {name}: unknown{nearest(str(name), CALLED)}; there are "
                    f"{', '.join(CALLED)}"
                )
            elif not all(map(callable, several)):
                faults.add(f"callbacks: {name} is {found!r}: it must be a function")
            self._given[name] = several
        faults.raise_if_any()
        self.moment: Moment | None = None
        """The latest that the run has told; None: it has not begun."""
        self.finished = False
        """Whether the run has told its end."""

    def hear(self, folder: Path, line: Mapping[str, Any]) -> None:
        """Take a line of telemetry.jsonl, and call what it stands for."""
        now = self.moment or Moment(save_dir=folder)
        kind = line["kind"]
        if kind == "start":
            first = self.moment is None
            # None is left where only the final evaluation was missing.
            epoch = min(line["first_epoch"], line["epochs"] - 1)
            self.moment = replace(now, epochs=line["epochs"], epoch=epoch, step=line["step"])
            if first:  # not at a restart after a failure
                self.call("on_pretrain_routine_end", "on_train_start")
        elif kind == "epoch_begin":
            self.moment = replace(now, epoch=line["epoch"])
            self.call("on_train_epoch_start")
        elif kind == "epoch":
            self.moment = _after_epoch(now, line)
            evaluated = ("on_val_end",) if line["metrics"] else ()
            self.call("on_train_epoch_end", *evaluated, "on_model_save", "on_fit_epoch_end")
        elif kind == "finish":
            self.finished = True
            metrics, seconds = line["metrics"] or {}, line["seconds"]
            self.moment = replace(now, metrics=metrics, seconds=seconds)
            self.call("on_train_end")

    def call(self, *names: str) -> None:
        """Call the functions of these names, if the run has begun.

        An exception of one is told at once, because the ranks take some time to stop.
        """
        for name in names if self.moment is not None else ():
            for function in self._given.get(name, ()):
                try:
                    function(self.moment)
                except Exception as error:
                    self._tell_failure(name, function, error)
                    raise

    def _tell_failure(self, name: str, function: Callback, error: Exception) -> None:
        """One line on the screen and in the run's log."""
        called = getattr(function, "__qualname__", type(function).__qualname__)
        line = f"callback {name} ({called}) failed: {reason_of(error)}"
        if not (self.finished or name == "teardown"):
            line += "; the run stops with a checkpoint"
        say(line)
        if self.moment is not None:
            add_line(self.moment.save_dir, line)


def _many(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _after_epoch(before: Moment, line: Mapping[str, Any]) -> Moment:
    """The moment after an epoch, by the one before and the epoch's line in the run's record."""
    fitnesses = [value for value in (before.best_fitness, line["fitness"]) if value is not None]
    losses = {f"val/{name}": value for name, value in (line["val_loss"] or {}).items()}
    return replace(
        before,
        epoch=line["epoch"],
        step=line["step"],
        metrics={**(line["metrics"] or {}), **losses},
        tloss={f"train/{name}": value for name, value in line["train_loss"].items()},
        lr=line["lr"],
        fitness=line["fitness"],
        best_fitness=max(fitnesses, default=None),
        seconds=line["seconds"],
    )
