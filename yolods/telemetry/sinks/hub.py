"""Passes a run's curves on to its loggers, each in a thread of its own, so that no step waits."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from yolods.stats import EpochStats
from yolods.telemetry.plots import harmless
from yolods.telemetry.sinks.feed import FEED_FILE, Feed
from yolods.telemetry.sinks.sink import RunFacts, Sink

_log = logging.getLogger("yolods.telemetry")

SINKS: dict[str, tuple[str, str] | None] = {
    "wandb": ("yolods.telemetry.sinks.wandb", "Wandb"),
    "mlflow": ("yolods.telemetry.sinks.mlflow", "Mlflow"),
    "clearml": ("yolods.telemetry.sinks.clearml", "Clearml"),
    "comet": ("yolods.telemetry.sinks.comet", "Comet"),
    "jsonl": None,
}
"""Name of --loggers -> module and class; None: the feed itself."""
_FINISH_SECONDS, _LEAVE_SECONDS = 60.0, 5.0
"""How long a finished run, and one that is interrupted, waits for a service that has not received
everything."""


class Sinks:
    """The loggers of one run, on rank 0; without names, nothing happens. No method raises."""

    def __init__(self, names: Sequence[str] = (), facts: RunFacts | None = None) -> None:
        """
        Args:
            names: names of `SINKS`.
            facts: the run; needed if there are names.
        """
        self._feed: Feed | None = None
        self._posts: list[_Post] = []
        if not names or facts is None:
            return
        self._names, self._facts = tuple(names), facts
        with harmless(FEED_FILE):
            self._feed = Feed(facts.folder / FEED_FILE)
        if self._feed is not None:
            self._posts = [_Post(name, facts) for name in names if SINKS[name] is not None]

    def start(
        self, config: Mapping[str, Any], epochs: int, step: int, first_epoch: int = 0
    ) -> None:
        """The run is about to take its first step.

        Args:
            config: the resolved configuration.
            epochs: number of epochs.
            step: steps that a resumed run continues from.
            first_epoch: epoch (from 0) that it continues in.
        """
        if self._feed is None:
            return
        known = set(self._feed.loggers)
        told = {"start": self._facts.start, "loggers": list(self._names), "epochs": epochs}
        self._write("start", **told, step=step, first_epoch=first_epoch)
        for post in self._posts:
            if post.name not in known:
                post.put(lambda sink: sink.config(config))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves, by TensorBoard's names, at an optimizer step."""
        fresh = self._feed.fresh(values, step) if self._feed else {}
        if fresh and self._write("scalars", step=step, values=fresh):
            self._put(lambda sink: sink.scalars(fresh, step))

    def picture(self, tag: str, file: Path, step: int) -> None:
        """A picture of the run's folder. May be called from any thread."""
        self._put(lambda sink: sink.picture(tag, file, step))

    def epoch_begin(self, epoch: int) -> None:
        """Epoch `epoch` (from 0) starts; only the feed has it."""
        self._write("epoch_begin", epoch=epoch)

    def epoch_end(self, stats: EpochStats, step: int) -> None:
        """An epoch is finished; its numbers are curves as well, so only the feed has this."""
        content = {key: value for key, value in asdict(stats).items() if key != "loader"}
        self._write("epoch", step=step, **content)

    def finish(
        self, metrics: Mapping[str, float] | None, model: Path | None, seconds: float
    ) -> None:
        """The run finished; waits for the services, but not forever.

        Args:
            metrics: those of best.pt; None: it was not evaluated.
            model: best.pt; None: there is none.
            seconds: wall time of the run.
        """
        told = {"metrics": metrics and dict(metrics), "model": model and str(model)}
        self._write("finish", **told, seconds=seconds)
        self._put(lambda sink: sink.finish(metrics or {}, model))
        self._end(_FINISH_SECONDS)

    def close(self) -> None:
        """End the threads; may be called twice."""
        self._end(_LEAVE_SECONDS)

    def _end(self, seconds: float) -> None:
        posts, self._posts = self._posts, []
        for post in posts:
            post.end()
        deadline = time.monotonic() + seconds
        for post in posts:
            post.join(max(deadline - time.monotonic(), 0))
            if post.is_alive():
                _log.warning(
                    "%s has not taken everything within %.0f s; %s has all of it",
                    post.name,
                    seconds,
                    FEED_FILE,
                )

    def _put(self, call: Callable[[Sink], None]) -> None:
        for post in self._posts:
            post.put(call)

    def _write(self, kind: str, **content: Any) -> bool:
        """Add a line to the feed; after a fault of the disk there are no more lines."""
        if self._feed is None:
            return False
        try:
            return self._feed.add(kind, **content)
        except (OSError, ValueError, TypeError) as error:
            self._feed = None
            _log.warning("%s could not be written, so it ends here: %s", FEED_FILE, error)
            return False


class _Post(threading.Thread):
    """The thread of one service: opens it and makes its calls, in order."""

    def __init__(self, name: str, facts: RunFacts) -> None:
        super().__init__(name=name, daemon=True)
        self._facts = facts
        self._calls: SimpleQueue[Callable[[Sink], None] | None] = SimpleQueue()
        self.start()

    def put(self, call: Callable[[Sink], None]) -> None:
        """Have a call made soon; dropped if the service has failed."""
        if self.is_alive():
            self._calls.put(call)

    def end(self) -> None:
        """Have the service closed after everything that was put."""
        self._calls.put(None)

    def run(self) -> None:
        """The thread itself: a fault of the service is one warning."""
        try:
            self._serve()
        # A package may leave by sys.exit, such as one that wants to ask for a key.
        except (Exception, SystemExit) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            _log.warning("--loggers %s: %s; it gets nothing more of this run", self.name, reason)

    def _serve(self) -> None:
        module, kind = SINKS[self.name] or ("", "")
        sink: Sink = getattr(importlib.import_module(module), kind)(self._facts)
        try:
            while (call := self._calls.get()) is not None:
                call(sink)
        except BaseException:
            with suppress(Exception):
                sink.close()
            raise
        sink.close()
