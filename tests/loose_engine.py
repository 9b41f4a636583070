"""The parts of an engine without DeepSpeed: a small net, plain masters, and stand-ins that note
what they are asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolods.config.deepspeed.yolods_block import OverflowConfig
from yolods.distributed.world import Ranks, Share
from yolods.engine.base import Parts
from yolods.model.inputs import InputFormat
from yolods.optim.ema import ShardedEma
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES
from yolods.zero.master_weights import PlainMasters

CPU = torch.device("cpu")
KINDS = {"1.weight": "weight", "2.weight": "bn", "2.bias": "bias"}
"""What is trained of `small_net`, and the parameter group of each. Other nets have weights
alone."""


def small_net(seed: int = 0) -> nn.Module:
    """A convolution that is frozen, one that is not, and a BatchNorm."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2))
    for name, parameter in net.named_parameters():
        parameter.requires_grad = not name.startswith("0.")
    return net


class LooseDeepSpeed:
    """A DeepSpeedEngine for fp32 on one rank: the optimizer steps the weights themselves. `told` is
    what was asked."""

    def __init__(self, net: nn.Module, *, momentum: float = 0.9) -> None:
        trained = {name: each for name, each in net.named_parameters() if each.requires_grad}
        groups = [
            {"params": [each], "param_group": KINDS.get(name, "weight")}
            for name, each in trained.items()
        ]
        self.module = net
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum)
        self.told: list[Any] = []
        self.global_steps = self.global_samples = self.micro_steps = self.skipped_steps = 0
        self.skips, self._last = False, True

    def __call__(self, images: torch.Tensor) -> Any:
        self.told.append("forward")
        return self.module(images)

    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool) -> None:
        self.told.append(("backward", scale_wrt_gas))
        loss.backward()

    def step(self) -> None:
        """As DeepSpeed's, called after every micro-batch; it acts where the last one was the
        boundary."""
        self.told.append("step")
        if not self._last:
            return
        self.global_steps += 1
        if not self.skips:
            self.optimizer.step()
        self.skips = False  # a decision is of one step
        self.optimizer.zero_grad()

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        self.told.append(("boundary", last))
        self._last = last

    def allreduce_gradients(self) -> None:
        self.told.append("reduce")

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()


class LooseStability:
    """Gives every step the same verdict, and has DeepSpeed carry it out."""

    restores = True

    def __init__(self, deepspeed: LooseDeepSpeed, verdict: Verdict | None = None) -> None:
        self.deepspeed, self.verdict, self.scale = deepspeed, verdict or Verdict(), 1.0
        self.seen: list[Any] = []

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.scale

    def before_step(
        self, sums: torch.Tensor, micro_batches: int, *, can_return: bool
    ) -> StepRecord:
        self.seen.append((sums.tolist(), micro_batches, can_return))
        self.deepspeed.skips = not self.verdict.applied
        loss = {
            name: value / micro_batches
            for name, value in zip(LOSS_NAMES, sums.tolist(), strict=False)
        }
        return StepRecord(loss=loss, instances=0, verdict=self.verdict)

    def after_step(self, record: StepRecord) -> StepRecord:
        return record

    def discard(self) -> None:
        self.deepspeed.skips = True

    def named(self, places: Any) -> list[str]:
        return [str(place) for place in places]

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load(self, state: dict[str, Any]) -> None:
        self.scale = state["scale"]


def parts_of(
    deepspeed: LooseDeepSpeed,
    *,
    verdict: Verdict | None = None,
    loss: Any = None,
    share: Share | None = None,
    ranks: Ranks | None = None,
    frozen: tuple[str, ...] = (),
    **overflow: Any,
) -> Parts:
    """Everything that an engine is put together from."""
    masters = PlainMasters(deepspeed.optimizer)
    statistics = [buffer for buffer in deepspeed.module.buffers() if buffer.is_floating_point()]
    return Parts(
        deepspeed=deepspeed,
        loss=loss,
        masters=masters,
        ema=ShardedEma(masters, statistics, decay=0.9, tau=1.0),
        stability=LooseStability(deepspeed, verdict),
        overflow=OverflowConfig(**{"attribution": "off", "snapshot_steps": 2, **overflow}),
        inputs=InputFormat(CPU, torch.float32, False),
        ranks=ranks or Ranks(0, 1, 0, "here", CPU),
        share=share or Share(0, 1),
        frozen=list(frozen),
        shared=False,
        strides=(8.0,),
        reg_max=16,
    )


def square_loss(
    prediction: torch.Tensor, batch: dict[str, Any], images: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A DetectionLoss: so large as ultralytics makes it, the mean times the images."""
    value = (prediction - batch["wanted"]).square().mean()
    return value * images, torch.stack([value.detach(), value.detach() * 2, value.detach() * 0])


def micro_batch(number: int, images: int = 2) -> dict[str, Any]:
    """uint8 images, as many boxes as `number`, and what the net is to say of them."""
    generator = torch.Generator().manual_seed(number)
    return {
        "img": torch.randint(0, 256, (images, 3, 4, 4), generator=generator, dtype=torch.uint8),
        "cls": torch.zeros(number, 1),
        "wanted": torch.rand(images, 2, 4, 4, generator=generator),
    }
