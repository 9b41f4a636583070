"""What the parity tests compare on: YOLOv5n on 64-pixel images, through the real configuration, and
beside it the same weights in a plain ultralytics model.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.distributed.world import Ranks
from yolods.engine.build import build_engine, plan_schedule
from yolods.engine.zero_engine import ZeroEngine
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.optim.lr_schedule import Schedule, Step
from yolods.optim.optimizers import OptimizerChoice, choose_optimizer
from yolods.stability.record import StepRecord

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
NAMES = ("cat", "dog", "fish")
SIZE, MICRO, ACCUMULATION = 64, 2, 2
SAMPLES, EPOCHS = 48, 10

Batch = dict[str, Tensor]


def micro_batch(number: int, images: int = MICRO) -> Batch:
    """The micro-batch of this number, the same everywhere: smooth random images and one to three
    boxes in each.

    Images of pure noise would leave the deep layers almost nothing to tell pixels apart by, and
    BatchNorm, which here sees eight values a channel, would divide rounding errors by that.
    """
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(images, 3, 16, 16, generator=generator)
    boxes = [1 + (number + image) % 3 for image in range(images)]
    size = 0.3 + 0.4 * torch.rand(sum(boxes), 2, generator=generator)
    centre = size / 2 + (1 - size) * torch.rand(sum(boxes), 2, generator=generator)
    return {
        "img": (F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear") * 255).to(torch.uint8),
        "batch_idx": torch.repeat_interleave(torch.arange(images), torch.tensor(boxes)).float(),
        "cls": torch.randint(0, len(NAMES), (sum(boxes), 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), 1),
    }


def configure(
    json_file: str | Path, ranks: int, *, model: str = "yolov5n", **hyper: Any
) -> RunConfig:
    """A run's configuration as the command line gives it, without warm-up.

    Args:
        json_file: a DeepSpeed JSON, or the name of one of ds_configs/ without its suffix.
        model: of the zoo.
        hyper: further hyper-parameters.
    """
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    file = json_file if isinstance(json_file, Path) else CONFIGS / f"{json_file}.json"
    batch = MICRO * ranks
    flags = {"data": "demo", "model": model, "imgsz": SIZE, "batch-size": batch, "epochs": EPOCHS}
    settings = {"nbs": batch * ACCUMULATION, "warmup_epochs": 0, **hyper}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    # A CPU has no fp16 for users; for tests it is only slow.
    device = "cuda" if "fp16" in file.stem or torch.cuda.is_available() else "cpu"
    return build_run_config(
        parser.parse_args([*words, "--deepspeed_config", str(file)]),
        world_size=ranks,
        device=device,
        environ={},
    )


class Small:
    """A real engine on the small model, with its schedule and configuration."""

    def __init__(
        self, engine: ZeroEngine, config: RunConfig, schedule: Schedule, layers: dict[str, Any]
    ) -> None:
        self.engine, self.config, self.schedule, self.layers = engine, config, schedule, layers
        self.gradients: dict[str, Tensor] = {}
        """Of the last step that kept them: whole, fp32, before clipping."""

    def step(self, number: int = 0, *, keep_gradients: bool = False) -> StepRecord:
        """Take optimizer step `number` on this rank's share of its micro-batches, through the real
        `train_step`."""
        ranks = self.engine.ranks
        first = number * ACCUMULATION
        step = self.schedule.step_at(first * self.schedule.batch)
        assert step == Step(first, ACCUMULATION, step.epoch, step.lr, step.momentum)
        mine = [
            micro_batch((first + place) * ranks.size + ranks.rank) for place in range(ACCUMULATION)
        ]
        with self._kept_gradients() if keep_gradients else nullcontext():
            return self.engine.train_step(step, iter(mine))

    @contextmanager
    def _kept_gradients(self) -> Iterator[None]:
        """Read them where accumulation is over and nothing has been clipped."""
        from deepspeed.utils import safe_get_full_grad

        engine = self.engine.deepspeed
        take_step = engine.step

        def keep_and_step() -> None:
            if engine.is_gradient_accumulation_boundary():
                named = [
                    (name, each)
                    for name, each in self.engine.net.named_parameters()
                    if each.requires_grad
                ]
                self.gradients = {
                    name: safe_get_full_grad(each).detach().float().clone() for name, each in named
                }
            take_step()

        engine.step = keep_and_step
        try:
            yield
        finally:
            del engine.step


@contextmanager
def small_engine(
    ranks: Ranks, json_file: str | Path, *, weights: dict[str, Tensor] | None = None, **hyper: Any
) -> Iterator[Small]:
    """Build the engine as a run does; taken down again after.

    Args:
        weights: a state_dict to start from, in place of the weights of the seed.
    """
    config = configure(json_file, ranks.size, **hyper)
    layers = architecture(parse_name(config.model), len(NAMES), 3)
    torch.manual_seed(config.seed)
    net = build(layers, NAMES)
    if weights is not None:
        net.load_state_dict(weights)
    choice = _choice(config)
    engine = build_engine(net, config, choice, ranks)
    engine.training()
    try:
        yield Small(engine, config, plan_schedule(config, choice, SAMPLES), layers)
    finally:
        engine.deepspeed.destroy()
        del engine, net
        gc.collect()


def _choice(config: RunConfig) -> OptimizerChoice:
    given = config.deepspeed.optimizer.params if config.deepspeed.optimizer else None
    return choose_optimizer(
        config.hyper,
        samples=SAMPLES,
        batch=config.batch_size,
        epochs=config.epochs,
        nc=len(NAMES),
        given=given,
    )


def plain_model(weights: dict[str, Tensor] | None = None, model: str = "yolov5n") -> Any:
    """ultralytics' own model of ultralytics' own yaml, built from the same seed; nothing of yolods
    in it."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    net = DetectionModel(f"{model.replace('n6', 'n-p6')}.yaml", nc=len(NAMES), verbose=False)
    net.args = get_cfg()
    if weights is not None:
        net.load_state_dict(weights)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = ".dfl" not in name
    return net.train()


def plain_loss(net: Any, batch: Batch) -> tuple[Tensor, list[float]]:
    """What ultralytics' trainer backpropagates for a micro-batch, and the loss items that it
    shows."""
    loss, items = net.loss({**batch, "img": batch["img"].float() / 255})
    return loss.sum(), [float(value) for value in items.values()]


@lru_cache
def seasoned_weights() -> dict[str, Tensor]:
    """The weights of `plain_model` after forty steps: what a comparison between roundings needs.

    At random weights the gradient is too ill-conditioned: fp32 in another order of summation moves
    it by 3e-4, and torch's own bf16 autocast of the plain model leaves a cosine of 0.5. Here 0.98
    and more is left, by the kind of CPU.

    In tests they come from the file that the fixture `seasoned` has made.
    """
    file = _seasoned_file()
    return torch.load(file) if file is not None and file.is_file() else _season(plain_model())


def keep_seasoned_weights() -> None:
    """Work them out for all worlds of a test session."""
    torch.save(_season(plain_model()), _seasoned_file())


def _seasoned_file() -> Path | None:
    """In the folder that tests/conftest.py names; outside of tests there is none."""
    folder = os.environ.get("TESTS_SCRATCH")
    return None if folder is None else Path(folder, "seasoned.pt")


def _season(net: Any) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(
        [each for each in net.parameters() if each.requires_grad], 0.05, momentum=0.9
    )
    for number in range(40):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - number / 40)
        optimizer.zero_grad()
        plain_loss(net, micro_batch(1000 + number, images=2 * MICRO))[0].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
    return net.state_dict()


@torch.no_grad()
def plain_statistics(ranks: int, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Running statistics after a step: those of `ranks` plain models, each fed its share,
    averaged."""
    nets = [plain_model(weights) for _ in range(ranks)]
    for number in range(ACCUMULATION * ranks):
        nets[number % ranks](micro_batch(number)["img"].float() / 255)
    named = [floating_buffers(net) for net in nets]
    return {name: torch.stack([each[name] for each in named]).mean(0) for name in named[0]}


def floating_buffers(net: torch.nn.Module) -> dict[str, Tensor]:
    """Running statistics by name."""
    return {name: each for name, each in net.named_buffers() if each.is_floating_point()}


def distance(mine: Tensor, other: Tensor) -> float:
    """|mine - other| / |other| in fp64; `inf` where `other` is nothing and `mine` is not."""
    mine, other = mine.detach().double(), other.detach().double()
    apart, size = float((mine - other).norm()), float(other.norm())
    return apart / size if size else (float("inf") if apart else 0.0)


def distances(mine: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """`distance` by name; the names have to be the same."""
    assert mine.keys() == other.keys(), mine.keys() ^ other.keys()
    return {name: distance(mine[name], value) for name, value in other.items()}


def worst(apart: dict[str, float]) -> tuple[float, str]:
    """The largest distance, and where."""
    return max((value, name) for name, value in apart.items())
