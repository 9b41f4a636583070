"""The other side of a pipeline's comparisons: the same micro-batches through plain ultralytics, in
one piece."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.small import MICRO, floating_buffers, plain_model, seasoned_weights
from tests.parity.splits import Case, batch_of, case_of
from yolods.distributed.world import Ranks
from yolods.model.layers import exchange_layers
from yolods.model.loss.detection_loss import as_float
from yolods.optim.optimizers import freeze, freeze_statistics

Report = dict[str, Any]


@lru_cache(maxsize=16)
def _plain_step(key: str, size: int, weights_of: _ByIdentity) -> Report:
    case, weights = case_of(json.loads(key)), weights_of.value
    nets = [_plain_of(case, weights) for _ in range(1 if case.sync_bn else case.replicas)]
    items, gradients, instances = [], {}, 0
    for place in range(case.micro_batches):
        batches = [batch_of(case, place, replica) for replica in range(case.replicas)]
        together = [batches] if case.sync_bn else [[batch] for batch in batches]
        for net, side_by_side in zip(nets, together, strict=True):
            items += _plain_pass(net, side_by_side, size, case)
        instances += sum(len(batch["cls"]) for batch in batches)
    for net in nets:
        for name, each in net.named_parameters():
            if each.requires_grad:
                gradients[name] = gradients.get(name, 0) + each.grad.float() / case.scale
    statistics = [
        {name: each.clone() for name, each in floating_buffers(net).items()} for net in nets
    ]
    return {
        "items": torch.tensor(items).mean(0),
        "gradients": gradients,
        "norm": float(torch.stack([each.norm() for each in gradients.values()]).norm()),
        "instances": instances,
        "statistics": statistics * (case.replicas if case.sync_bn else 1),
    }


def _plain_pass(
    net: Any, batches: list[dict[str, Tensor]], size: int, case: Case
) -> list[list[float]]:
    """Backpropagate what ultralytics' trainer does for micro-batches that go through the model
    together.

    Several are still judged one by one: ultralytics' loss of four images is not the mean over two
    times two.
    """
    images = torch.cat([batch["img"] for batch in batches]).float() / 255
    if images.shape[-1] != size:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "autocast"):
        whole = net(images.to(next(net.parameters()).dtype))
    criterion, losses, items, first = net.init_criterion(), [], [], 0
    for batch in batches:
        mine = {key: whole[key][first : first + MICRO] for key in ("boxes", "scores")}
        mine["feats"] = [level[first : first + MICRO] for level in whole["feats"]]
        loss, shown = criterion(as_float(mine), batch)
        losses.append(loss.sum())
        items.append([float(value) for value in shown.values()])
        first += MICRO
    (sum(losses) * case.scale).backward()
    return items


def _plain_of(case: Case, weights: dict[str, Tensor]) -> Any:
    """A plain model with the case's frozen layers, rounded as a run of its precision has it."""
    net = plain_model(weights, case.model)
    freeze_statistics(net, freeze(net, case.freeze))
    if case.precision in ("bf16", "fp16"):
        exchange_layers(net, low_precision=True, sync_bn=False, pointwise=False)
        for parameter in net.parameters():
            parameter.data = parameter.data.to(
                torch.bfloat16 if case.precision == "bf16" else torch.float16
            )
    return net


class _ByIdentity:
    """Makes the weights of a whole session a key of a cache."""

    def __init__(self, value: dict[str, Tensor]) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.value is self.value


def plain_step(case: Case, size: int, weights: dict[str, Tensor]) -> Report:
    """The same micro-batches through plain ultralytics: gradients summed as its trainer sums them.

    Cases that differ in nothing but how the model is split share one.
    """
    decides = {
        "replicas",
        "micro_batches",
        "model",
        "sizes",
        "empty",
        "precision",
        "freeze",
        "sync_bn",
    }
    fields = {key: value for key, value in asdict(case).items() if key in decides}
    return _plain_step(
        json.dumps({"cuts": (), **fields}, sort_keys=True), size, _ByIdentity(weights)
    )


def weights_for(ranks: Ranks, model: str, folder: Path) -> dict[str, Tensor]:
    """Weights to compare at, the same on all ranks: of yolov5n after forty steps, as `small`
    explains.

    Kept in `folder`, for the worlds of other sizes that follow.
    """
    file = folder / f"{model}.pt"
    if ranks.is_main and not file.exists():
        torch.save(
            seasoned_weights() if model == "yolov5n" else plain_model(model=model).state_dict(),
            file,
        )
    ranks.barrier()
    return _read(file)


@lru_cache
def _read(file: Path) -> dict[str, Tensor]:
    return torch.load(file)


@lru_cache
def names_of(model: str, frozen: int | None) -> tuple[set[str], set[str]]:
    """Trained parameters and running statistics of the whole model."""
    net = plain_model(model=model)
    freeze(net, frozen)
    return {name for name, each in net.named_parameters() if each.requires_grad}, set(
        floating_buffers(net)
    )
