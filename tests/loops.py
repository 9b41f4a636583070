"""A run's loop in one process without a model: what it asks of whom, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from yolods.checkpoint.progress import Progress
from yolods.config.deepspeed.yolods_block import YolodsConfig
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Schedule, Step
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES, LoaderStats
from yolods.telemetry import NullTelemetry, Telemetry
from yolods.trace.tracing import NoTracing
from yolods.traffic.meter import NoMeter
from yolods.training.loop import Run

ALONE = Ranks(0, 1, 0, "here", torch.device("cpu"))


def schedule_of(samples: int, batch: int, epochs: int) -> Schedule:
    """Steps of one batch each, at one rate."""
    rates = {"lr0": 0.5, "lrf": 1.0, "momentum": 0.9, "warmup_momentum": 0.8, "warmup_bias_lr": 0.1}
    flags = {"ramp": False, "cos_lr": False, "warmup_epochs": 0, "accumulation": 1}
    return Schedule(samples=samples, batch=batch, epochs=epochs, **rates, **flags)


def good(**more: Any) -> StepRecord:
    """Of a step of one micro-batch in which nothing happened."""
    return StepRecord(loss=dict.fromkeys(LOSS_NAMES, 1.0), instances=3, grad_norm=2.0, **more)


class Store:
    """Notes what is saved; `fault` is what a disk says."""

    def __init__(self, calls: list[str]) -> None:
        self._calls, self.saved, self.fault = calls, [], None

    def save(self, engine: Any, progress: Progress) -> None:
        self._calls.append(f"save {progress.step}")
        if self.fault is not None:
            raise self.fault
        self.saved.append(progress)

    def check(self) -> None:
        """Nothing has failed."""

    def wait(self) -> None:
        self._calls.append("wait")

    def note_start(self) -> None:
        self._calls.append("note start")

    def note_end(self, progress: Progress, status: int = 0) -> None:
        self._calls.append(f"note end {status}")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.append("close the store")


class Lines(NullTelemetry):
    """Notes moments and lines."""

    def __init__(self, calls: list[str]) -> None:
        self._calls, self.records, self.events, self.epochs = calls, [], [], []

    def epoch_begin(self, epoch: int) -> None:
        self._calls.append(f"epoch {epoch + 1}")

    def step(self, record: StepRecord) -> None:
        self.records.append(record)

    def stability(self, event: Any) -> None:
        self._calls.append(f"{event.action}: {event.remedy}")
        self.events.append(event)

    def epoch_end(self, stats: Any) -> None:
        self.epochs.append(stats)

    def event(self, kind: str, text: str, *, warn: bool = False) -> None:
        self._calls.append(f"{kind}: {text}")


class Loop:
    """A run over stand-ins; `run` is the real one."""

    def __init__(
        self,
        folder: Path = Path("runs/exp"),
        *,
        samples: int = 8,
        batch: int = 4,
        epochs: int = 2,
        engine: Any = None,
        telemetry: Callable[[list[str]], Telemetry] = Lines,
        own: YolodsConfig | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.calls: list[str] = []
        self.steps: dict[int, StepRecord] = {}
        """What the engine makes of a step, by its number from 1; else it is `good`."""
        self.patience = 99
        """Epochs that are taken."""
        self.telemetry, self.store = telemetry(self.calls), Store(self.calls)
        config = SimpleNamespace(
            epochs=epochs,
            imgsz=64,
            run_dir=folder,
            deepspeed=SimpleNamespace(own=own or YolodsConfig()),
        )
        self.run = Run(
            config,
            engine or self._engine(),
            schedule_of(samples, batch, epochs),
            self._batches(),
            Selected(self),
            self._judge_best,
            self.store,
            self.telemetry,
            SimpleNamespace(news=list, step_seconds=dict),
            SimpleNamespace(step=lambda scalars, epoch_ends: None),
            progress or Progress(),
            NoTracing(),
        )

    def _engine(self) -> SimpleNamespace:
        return SimpleNamespace(
            ranks=ALONE,
            training=lambda: None,
            train_step=self._train_step,
            report=lambda: None,
            traffic=NoMeter(),
            evaluating=nullcontext,
        )

    def _train_step(self, step: Step, batches: Any, size: int | None, *, stop: bool) -> StepRecord:
        number = self.run.progress.step + 1
        self.calls.append(f"step {number}")
        return self.steps.get(number, good(stop=stop))

    def _batches(self) -> SimpleNamespace:
        def read(progress: Progress) -> Iterator[Any]:
            yield from ()

        def noted(progress: Progress) -> Iterator[Any]:
            self.calls.append(f"read from {progress.position}")
            return read(progress)

        return SimpleNamespace(
            place=lambda image: f"/data/{image}",
            exclude=lambda images: (
                self.calls.append(f"exclude {sorted(images)}") if images else None
            ),
            read=noted,
            size=lambda step: None,
            tell_replaced=lambda: None,
            loading=lambda seconds: LoaderStats(
                images_per_second=100.0, decode_share=0.5, wait_share=0.1
            ),
        )

    def _judge_best(self, progress: Progress, excluded: Any) -> None:
        self.calls.append("judge best.pt")

    def fit(self, within: AbstractContextManager[Any] | None = None) -> Loop:
        """Train to the end."""
        with within or nullcontext():
            self.run.fit()
        return self


class Selected:
    """A selection that takes every epoch for the best."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self.exhausted = loop, False

    def __call__(self, progress: Progress) -> tuple[Progress, None, bool]:
        self._loop.calls.append(f"judge epoch {progress.epochs_done + 1}")
        return progress, None, True

    def check_patience(self, progress: Progress) -> None:
        self.exhausted = progress.epochs_done >= self._loop.patience
