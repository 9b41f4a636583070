"""Runs ultralytics' own trainer as it is, with callbacks that note when things happen.

Usage: drive_ultralytics.py OVERRIDES, the overrides of DetectionTrainer as JSON. The task comes in
the environment.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.observer import Task, Watch
from yolods import compat


def main() -> None:
    """Train with the overrides in the first argument."""
    compat.prepare()
    compat.stand_in_for_torchvision()
    compat.use_local_font()
    from ultralytics.models.yolo.detect import DetectionTrainer

    watch = Watch(Task.from_environment())
    trainer = DetectionTrainer(overrides=json.loads(sys.argv[1]))
    attend(trainer, watch)
    trainer.train()
    watch.finished({name: float(value) for name, value in trainer.metrics.items()})


def attend(trainer: Any, watch: Watch) -> None:
    """Have a trainer call the watch; nothing that it computes is changed."""
    counter = _Counter(trainer)

    def start(_: Any) -> None:
        import torch

        # Choosing its device, ultralytics 8.4.190 takes one thread fewer than the machine has
        # cores, 8 at most.
        torch.set_num_threads(watch.task.threads)
        if watch.task.kind == "profile":
            time_parts(trainer, watch)

    def batch_ended(_: Any) -> None:
        if images := counter.images_of_step():
            watch.step_ended(images)

    trainer.add_callback("on_train_start", start)
    trainer.add_callback("on_train_epoch_start", lambda _: watch.epoch_began())
    trainer.add_callback("on_train_batch_end", batch_ended)
    trainer.add_callback(
        "on_train_epoch_end", lambda _: watch.epoch_ended(len(trainer.train_loader.dataset))
    )


class _Counter:
    """Counts the images that a trainer accumulates into an optimizer step."""

    def __init__(self, trainer: Any) -> None:
        self._images, self._stepped = 0, False
        self._prepare, self._step = trainer.preprocess_batch, trainer.optimizer_step
        trainer.preprocess_batch, trainer.optimizer_step = self._count, self._note

    def _count(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._images += len(batch["img"])
        return self._prepare(batch)

    def _note(self) -> None:
        self._step()
        self._stepped = True

    def images_of_step(self) -> int:
        """Images of the step that this batch completed; 0 where it completed none."""
        if not self._stepped:
            return 0
        images, self._images, self._stepped = self._images, 0, False
        return images


def time_parts(trainer: Any, watch: Watch) -> None:
    """Have each part of a step count for itself."""
    import torch

    stopwatch = watch.stopwatch
    for owner, method, part in (
        (trainer, "preprocess_batch", "input"),
        (trainer.model, "predict", "forward"),
        (trainer.model, "loss", "loss"),
        (torch.Tensor, "backward", "backward"),
        (trainer, "optimizer_step", "optimizer and communication"),
        (trainer.ema, "update", "EMA"),
    ):
        stopwatch.wrap(owner, method, part)
    loader = trainer.train_loader
    begin = loader._get_iterator
    loader._get_iterator = lambda: stopwatch.timed(begin(), "data")


if __name__ == "__main__":
    main()
