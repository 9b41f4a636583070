"""ultralytics' own `DetectionTrainer`, its loop and all, with notes of every optimizer step.

It is subclassed to look on and to hand batches in. What it computes is changed in the `Way` alone:
another rounding, or the two halves of a batch as two ranks of its DDP would take them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer

from benchmarks.trainer_trace import Noted, State, Trace

WAYS = ("plain", "channels-last", "two threads", "halves", "halves, channels-last")
"""`plain`: as it is. `channels-last`, `two threads`: the same sums in another order. `halves`: see
`Halves`."""
READ = ("img", "cls", "bboxes", "batch_idx")
"""Of a batch."""


def train(
    settings: str, out: str, way: str = "plain", batches: str = "", marks: list[int] | None = None
) -> None:
    """Train to the end and write the `Trace` to a file; called in a process of its own.

    Args:
        settings: overrides of `DetectionTrainer` as JSON; `start` among them is a .pt whose weights
            it begins with.
        out: file to write.
        way: one of `WAYS`.
        batches: file of a list of batches that are handed in; empty: it loads its own.
        marks: steps, from 1, after which weights are noted; None: all.
    """
    overrides = json.loads(settings)
    handed = torch.load(batches) if batches else None
    trainer = Watched(overrides, way, handed, marks)
    trainer.train()
    trainer.note_files()
    torch.save(trainer.trace, out)


class Watched(DetectionTrainer):
    """The trainer, looked at."""

    def __init__(
        self,
        overrides: dict[str, Any],
        way: str,
        handed: list[dict[str, Any]] | None,
        marks: list[int] | None,
    ) -> None:
        self.trace, self.way, self.handed, self.marks = Trace(), way, handed, marks
        self._begin = overrides.pop("start")
        self._waiting: list[tuple[int, tuple[float, ...]]] = []
        self._images, self._taken = 0, False
        super().__init__(overrides=overrides)
        self.add_callback("on_train_start", Watched._start)
        self.add_callback("on_train_batch_end", Watched._batch_ended)
        self.add_callback(
            "on_train_epoch_end", lambda _: self.trace.per_epoch.append(len(self.train_loader))
        )

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        """Its model, with the weights that both trainers begin with."""
        model = super().get_model(cfg, weights, verbose)
        model.load_state_dict(torch.load(self._begin))
        self.trace.start = parameters_of(model)
        return model

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        """Its loader; of training, with other batches or a note of its own."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        return Loader(loader, self.handed, self.trace.batches) if mode == "train" else loader

    def _start(self) -> None:
        # Choosing its device, ultralytics 8.4.190 takes one thread fewer than the machine has
        # cores.
        torch.set_num_threads(2 if self.way == "two threads" else 1)
        if "channels-last" in self.way:
            self.model.to(memory_format=torch.channels_last)
        if "halves" in self.way:
            self.halves = Halves(self.model)
            self.model.forward = self.halves

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Its own; counts images."""
        batch = super().preprocess_batch(batch)
        self._images = len(batch["img"])
        if "channels-last" in self.way:
            batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        return batch

    def optimizer_step(self) -> None:
        """Its own; notes what it was and did."""
        self._note_batch()
        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        norm = math.sqrt(sum(float(each.double().square().sum()) for each in gradients))
        groups = self.optimizer.param_groups
        super().optimizer_step()
        images, items = zip(*self._waiting, strict=True)
        step = Noted(
            batches=len(images),
            images=sum(images),
            epoch=self.epoch,
            lr=tuple(group["lr"] for group in groups),
            decay=tuple(group["weight_decay"] for group in groups),
            momentum=groups[0]["momentum"] if "momentum" in groups[0] else groups[0]["betas"][0],
            items=tuple(sum(each) / len(each) for each in zip(*items, strict=True)),
            norm=norm,
            updates=self.ema.updates,
        )
        self.trace.steps.append(step)
        if self.marks is None or len(self.trace.steps) in self.marks:
            step.states = self._states()
        self._waiting, self._taken = [], True

    def _note_batch(self) -> None:
        items = self.halves.items if "halves" in self.way else self.loss_items
        self._waiting.append((self._images, tuple(float(value) for value in items.values())))

    def _batch_ended(self) -> None:
        if not self._taken:
            self._note_batch()
        self._taken = False

    def _states(self) -> dict[str, State]:
        states = {
            "weights": parameters_of(self.model),
            "average": parameters_of(self.ema.ema),
            "statistics": statistics_of(self.model),
            "average statistics": statistics_of(self.ema.ema),
        }
        return states | (
            {"statistics 1": statistics_of(self.halves.other)} if "halves" in self.way else {}
        )

    def _close_dataloader_mosaic(self) -> None:
        self.trace.closed = self.epoch
        super()._close_dataloader_mosaic()

    def validate(self) -> Any:
        """Its own; notes what is judged."""
        self.trace.judged = parameters_of(self.ema.ema) | statistics_of(self.ema.ema)
        return super().validate()

    def note_files(self) -> None:
        """What the run has left."""
        for file in (self.best, self.last):
            model = (
                torch.load(file, weights_only=False)["ema"]
                or torch.load(file, weights_only=False)["model"]
            )
            self.trace.files[file.name] = floats_of(model.state_dict())


class Loader:
    """A trainer's loader, of which the batches are noted, or replaced."""

    def __init__(
        self, real: Any, handed: list[dict[str, Any]] | None, noted: list[dict[str, Any]]
    ) -> None:
        self._real, self._noted = real, noted
        self._handed = None if handed is None else iter(handed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __len__(self) -> int:
        return len(self._real)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._handed is None:
            for batch in self._real:
                self._noted.append({key: batch[key].clone() for key in READ})
                yield batch
        else:
            for _, batch in zip(range(len(self)), self._handed, strict=False):
                yield dict(batch)


class Halves:
    """A model on two ranks of ultralytics' DDP, in one process.

    Each half of a batch passes through a copy with running statistics of its own, over the same
    parameters. ultralytics multiplies a rank's loss by the number of ranks and DDP averages
    gradients, which is the sum of both losses. Its moving average follows the first rank, whose
    statistics it evaluates with and saves.
    """

    def __init__(self, model: nn.Module) -> None:
        self._first = model.forward
        self.other = deepcopy(model)
        for mine, other in zip(model.modules(), self.other.modules(), strict=True):
            other._parameters.update(mine._parameters)
        self.items: dict[str, Tensor] = {}
        """Loss items, averaged over both."""

    def __call__(self, batch: Any) -> Any:
        if not isinstance(batch, dict):  # the images of the first half, within its own loss
            return self._first(batch)
        self.other.train()
        first, second = (half_of(batch, place) for place in range(2))
        mine, items = self._first(first)
        other, others = self.other(second)
        self.items = {key: (value + others[key]) / 2 for key, value in items.items()}
        return mine + other, items


def half_of(batch: dict[str, Tensor], place: int, parts: int = 2) -> dict[str, Tensor]:
    """One of a batch's equal parts."""
    images = len(batch["img"]) // parts
    mine = batch["batch_idx"] // images == place
    return {
        "img": batch["img"][place * images : (place + 1) * images],
        "cls": batch["cls"][mine],
        "bboxes": batch["bboxes"][mine],
        "batch_idx": batch["batch_idx"][mine] - place * images,
    }


def parameters_of(model: nn.Module) -> State:
    """Copies of all parameters."""
    return {name: each.detach().clone().contiguous() for name, each in model.named_parameters()}


def statistics_of(model: nn.Module) -> State:
    """Copies of the floating buffers."""
    return {name: each.clone() for name, each in model.named_buffers() if each.is_floating_point()}


def floats_of(state: State) -> State:
    """The floating tensors of a state_dict, fp32."""
    return {
        name: each.float().contiguous() for name, each in state.items() if each.is_floating_point()
    }
