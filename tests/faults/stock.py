"""Two sides of every fault of stock DeepSpeed: DeepSpeed as it comes, on a network small enough for
plain torch to be run beside it, and the engines that a run builds, on a narrow detector.

Stock(..)            `deepspeed.initialize` and nothing of ours
own_engine(..)       an engine of ours in the same layout
Reached(..)          norm of the gradients that the inner optimizer is handed, after all unscaling
                     and clipping
true_norms(..)       plain torch: norms of a step of `Stock`
plain_norm(..)       plain ultralytics: norm of a step of `take`

A layout is a kind and a ZeRO stage: `zero2` on all ranks, `pipeline1` with a stage of the model on
each of two ranks.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.pipes import split_engine
from tests.parity.small import NAMES, Batch, micro_batch, plain_loss, small_engine
from tests.parity.splits import Case
from yolods.config.deepspeed.config import read_deepspeed
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.errors import Faults
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.layers import exchange_layers
from yolods.model.loss.detection_loss import as_float
from yolods.optim.lr_schedule import Step
from yolods.stability.record import StepRecord

LAYOUTS = ("zero1", "zero2", "zero3", "pipeline1")
Report = dict[str, Any]
Measured = list[dict[str, dict[Any, Report]]]
"""What each rank found, by kind of engine and by layout."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

IMAGES, SIDE = 4, 8
"""Of a micro-batch of the small network."""
FAR = 1e8
"""A target whose loss is finite, and whose gradient is beyond fp16 (65504) at any loss scale."""

MODEL, CUT = "yolov5[0.1,0.05]", "10"
"""Of our engines: a detector of 0.05 the width without repeated layers, and where a pipeline's
second stage begins."""
MICRO_BATCHES = 2
"""Of a step of our engines, on each replica."""
EARLY = "model.3.conv"
"""A layer of the first stage."""


def mended(number: int, what: str) -> str:
    """What an assertion on a stock number says when it fails."""
    return (
        f"stock DeepSpeed shows fault {number} no more ({what}): it is mended, or works in another "
        "way than 0.19.8. See which of our replacements is still needed, and docs/stability.md"
    )


def told(measured: Measured, kind: str, layout: str) -> Report:
    """What rank 0 found; the other has to have found the same."""
    first, second = (rank[kind][layout] for rank in measured)
    assert first == second
    return first


def low_precision(name: str, *, buffers: bool = True, **settings: Any) -> dict[str, Any]:
    """The JSON blocks of a stock engine in fp16 or bf16.

    Args:
        buffers: cast buffers as well, without which BatchNorm raises on a CPU.
        settings: of the fp16 block.
    """
    block: dict[str, Any] = {name: {"enabled": True, **settings}}
    return block | ({"data_types": {"buffer_dtype": name}} if buffers else {})


def precision_of(blocks: dict[str, Any]) -> str:
    """fp16 or bf16 where a JSON has such a block, else fp32."""
    return next((name for name in ("fp16", "bf16") if name in blocks), "fp32")


def refusals(folder: Path, raw: dict[str, Any], ranks: int = 2) -> list[str]:
    """What our configuration has against a DeepSpeed JSON on GPUs."""
    file, faults = folder / "ds.json", Faults()
    file.write_text(json.dumps(raw), encoding="utf-8")
    read_deepspeed(file, batch_size=None, world_size=ranks, device="cuda", faults=faults)
    return list(faults)


class Reached:
    """Hears what an optimizer is given, right before it steps."""

    def __init__(self, inner: torch.optim.Optimizer, *, over_ranks: bool) -> None:
        """
        Args:
            inner: torch's optimizer, however deep DeepSpeed has put it.
            over_ranks: ranks hold different parts of the gradient; otherwise each one the same
                whole.
        """
        self._squares, self._over_ranks = 0.0, over_ranks
        inner.register_step_pre_hook(self._note)

    def _note(self, inner: torch.optim.Optimizer, *_: Any) -> None:
        given = [
            each.grad
            for group in inner.param_groups
            for each in group["params"]
            if each.grad is not None
        ]
        scale = getattr(inner, "grad_scale", None)  # a fused kernel divides by it as it steps
        divisor = 1.0 if scale is None else float(scale)
        self._squares += sum(
            float((gradient.double() / divisor).square().sum()) for gradient in given
        )

    def take(self) -> float:
        """Norm of everything since the last call; 0 where nothing was stepped. A collective."""
        total = torch.tensor(self._squares, dtype=torch.float64)
        if self._over_ranks:
            dist.all_reduce(total)
        self._squares = 0.0
        return math.sqrt(float(total))


# Stock DeepSpeed on a small network.


def network() -> nn.Sequential:
    """A convolution with BatchNorm as YOLOv5 has it, and one without."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, eps=1e-3, momentum=0.03),
        nn.SiLU(),
        nn.Conv2d(8, 4, 1),
    )


def sample(replica: int, far: bool = False, bad: bool = False) -> tuple[Tensor, Tensor]:
    """A replica's images and targets, the same in every step.

    Args:
        far: targets are `FAR` away: the loss is finite and the gradient is not, in fp16.
        bad: a pixel is infinite.
    """
    generator = torch.Generator().manual_seed(replica)
    images = 1 + torch.rand(IMAGES, 3, SIDE, SIDE, generator=generator)
    targets = torch.randn(IMAGES, 4, SIDE, SIDE, generator=generator)
    if bad:
        images[0, 0, 3, 3] = float("inf")
    return images, targets + FAR if far else targets


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean square, in fp32."""
    return F.mse_loss(outputs.float(), targets)


class Stock:
    """DeepSpeed's own engine, or its own pipeline engine in two stages, with plain SGD."""

    def __init__(self, ranks: Ranks, layout: str, *, rate: float = 0.0, **blocks: Any) -> None:
        """Build it. A collective.

        Args:
            rate: learning rate.
            blocks: of the JSON.
        """
        import deepspeed
        from deepspeed.pipe import PipelineModule

        self.piped, stage = layout.startswith("pipeline"), int(layout[-1])
        self.dtype = DTYPES[precision_of(blocks)]
        self.replica = 0 if self.piped else ranks.rank
        net: nn.Module = network()
        if self.piped:
            net = PipelineModule(
                list(net), num_stages=ranks.size, loss_fn=loss_of, partition_method="uniform"
            )
        settings = {
            "train_micro_batch_size_per_gpu": IMAGES,
            "gradient_accumulation_steps": 1,
            "steps_per_print": 10**12,
            "zero_optimization": {
                "stage": stage,
                "reduce_bucket_size": 10**6,
                "allgather_bucket_size": 10**6,
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **blocks,
        }
        optimizer = torch.optim.SGD(net.parameters(), rate)
        self.engine, *_ = deepspeed.initialize(
            model=net, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.reached = Reached(optimizer, over_ranks=stage > 0 or self.piped)

    def step(self, **sort: bool) -> float:
        """Take a step on `sample(..)`; its loss. A collective."""
        images, targets = sample(self.replica, **sort)
        images = images.to(self.dtype)
        if self.piped:
            return float(self.engine.train_batch(iter([(images, targets)])))
        self.engine.train()
        loss = loss_of(self.engine(images), targets)
        self.engine.backward(loss)
        self.engine.step()
        return float(loss)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Loss of the good sample in evaluation mode. A collective."""
        images, targets = sample(self.replica)
        images = images.to(self.dtype)
        if self.piped:
            return float(self.engine.eval_batch(iter([(images, targets)])))
        self.engine.eval()
        return float(loss_of(self.engine(images), targets))

    @property
    def scale(self) -> float:
        """The loss scale of the next step."""
        return float(self.engine.optimizer.loss_scale)

    @property
    def statistics(self) -> list[Tensor]:
        """Running mean and variance; nothing on the stage that has no BatchNorm."""
        norms = [each for each in self.engine.module.modules() if isinstance(each, nn.BatchNorm2d)]
        return [buffer for each in norms for buffer in (each.running_mean, each.running_var)]


@contextmanager
def stock(ranks: Ranks, layout: str, **settings: Any) -> Iterator[Stock]:
    """A `Stock`, taken down again after, with what it leaves in DeepSpeed's globals."""
    from deepspeed.utils import groups

    made = Stock(ranks, layout, **settings)
    try:
        yield made
    finally:
        made.engine.destroy()
        # The next engine would take a pipeline's replicas for its own.
        groups.mpu = None
        del made
        gc.collect()


def plain_network(dtype: torch.dtype) -> nn.Sequential:
    """The same in fp32, at the weights that a type can hold."""
    net = network()
    for parameter in net.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return net.train()


def true_norms(dtype: torch.dtype, replicas: int) -> list[float]:
    """Norm of the mean gradient over the replicas, in plain fp32: of each half of the network's
    layers."""
    net = plain_network(dtype)
    for replica in range(replicas):
        images, targets = sample(replica)
        (loss_of(net(images.to(dtype).float()), targets) / replicas).backward()
    halves = [list(net)[:2], list(net)[2:]]
    return [_norm([each.grad for layer in half for each in layer.parameters()]) for half in halves]


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(each.double().square().sum()) for each in tensors))


# Our engines on a narrow detector.


@contextmanager
def own_engine(ranks: Ranks, layout: str, folder: Path, **blocks: Any) -> Iterator[Engine]:
    """A real engine, at `own_weights`.

    Args:
        folder: for its JSON.
        blocks: of that.
    """
    from deepspeed.utils import groups

    precision, stage = precision_of(blocks), int(layout[-1])
    if layout.startswith("pipeline"):
        exact = {"model": MODEL, "micro_batches": MICRO_BATCHES, "channels_last": False}
        case = Case(cuts=(CUT,), zero=stage, precision=precision, blocks=blocks, **exact)
        context: Any = split_engine(ranks, case, folder)
    else:
        half = "torch_autocast" in blocks or precision == "fp16"
        file = folder / f"{layout}_{'fp16' if half else precision}-{ranks.rank}.json"
        zero = {"stage": stage, "reduce_bucket_size": 10**7, "allgather_bucket_size": 10**7}
        file.write_text(json.dumps({"zero_optimization": zero, **blocks}), encoding="utf-8")
        context = small_engine(ranks, file, model=MODEL, optimizer="SGD", channels_last=False)
    try:
        with context as made:
            engine = made if isinstance(made, Engine) else made.engine
            engine.adopt(own_weights())
            yield engine
    finally:
        groups.mpu = None


def take(engine: Engine, rate: float = 0.0, *, same: bool = False) -> StepRecord:
    """A step of an engine through its real `train_step`. A collective.

    Args:
        rate: learning rate; at 0 every step has the same gradient.
        same: every micro-batch of every replica is the first one.
    """
    share = engine.share
    numbers = [
        0 if same else place * share.dp_size + share.dp_rank for place in range(MICRO_BATCHES)
    ]
    step = Step(0, MICRO_BATCHES, 0, (rate, rate, rate), 0.9)
    return engine.train_step(step, iter([micro_batch(number) for number in numbers]))


@contextmanager
def bad_image(engine: Engine) -> Iterator[None]:
    """Within: the first replica's images have an infinite pixel."""
    inputs = engine.inputs
    if engine.share.dp_rank == 0:
        engine.inputs = _Spoiled(inputs)
    try:
        yield
    finally:
        engine.inputs = inputs


class _Spoiled:
    """Stands in for an `InputFormat`."""

    def __init__(self, inputs: Any) -> None:
        self._inputs = inputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inputs, name)

    def images(self, batch: Tensor, size: int | None = None) -> Tensor:
        images = self._inputs.images(batch, size)
        images[0, 0, 3, 3] = float("inf")
        return images


@contextmanager
def bad_gradient(engine: Engine) -> Iterator[None]:
    """Within: the gradient of an early layer is infinite on the first replica, and the loss is as
    ever."""
    module = dict(engine.net.named_modules()).get(EARLY)
    here = module is not None and engine.share.dp_rank == 0
    hook = (
        module.weight.register_hook(lambda gradient: gradient.abs() + float("inf"))
        if here
        else None
    )
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@lru_cache
def own_weights() -> dict[str, Tensor]:
    """What every engine starts from."""
    torch.manual_seed(0)
    state = build(architecture(parse_name(MODEL), len(NAMES), 3), NAMES).state_dict()
    return {name: value.clone() for name, value in state.items()}


def plain_detector(weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """ultralytics' model in a type, BatchNorm computing in fp32 whatever that is."""
    from ultralytics.cfg import get_cfg

    net = build(architecture(parse_name(MODEL), len(NAMES), 3), NAMES)
    net.load_state_dict(weights)
    net.args = get_cfg()
    if dtype != torch.float32:
        exchange_layers(net, low_precision=True, sync_bn=False, pointwise=False)
    for name, parameter in net.named_parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad = ".dfl" not in name
    return net.train()


@lru_cache
def plain_norm(dtype: torch.dtype, replicas: int, scale: float = 1.0) -> float:
    """Norm of a step of `take`, by ultralytics' convention: losses times images add up over
    micro-batches and replicas.

    At random weights the gradient in fp16 is 4% larger than in fp32; so this one is of the type's
    own arithmetic.

    Args:
        scale: what losses are multiplied by and gradients divided.
    """
    net = plain_detector(own_weights(), dtype)
    criterion = net.init_criterion()
    for number in range(MICRO_BATCHES * replicas):
        batch = micro_batch(number)
        loss, _ = criterion(as_float(net(batch["img"].div(255).to(dtype))), batch)
        (loss.sum() * scale).backward()
    return _norm([each.grad for each in net.parameters() if each.grad is not None]) / scale


def plain_evaluation(weights: dict[str, Tensor], batch: Batch) -> float:
    """Sum of the loss items of a whole model's state_dict in evaluation mode."""
    net = plain_detector(weights).eval()
    with torch.no_grad():
        return sum(plain_loss(net, batch)[1])
