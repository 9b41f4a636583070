"""What the device computes beside a CPU in fp64 or fp32: squares, BatchNorm, the loss, a step's
gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_device import device
from benchmarks.gpu_engines import applied
from benchmarks.gpu_job import Item, Job
from tests.parity.small import (
    ACCUMULATION,
    distance,
    micro_batch,
    plain_loss,
    plain_model,
    seasoned_weights,
    small_engine,
)
from yolods.distributed.world import join_world, leave

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SQUARES_APART = 1e-5
"""Relative: both add up in fp32, in another order."""
ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 1e-5}
"""Of a number of that dtype, twice; fp32's with room for TF32's order of sums."""
STEPS = ("zero1_fp32", "zero0_bf16_autocast", "zero1_bf16", "zero1_fp16")
"""Configurations whose gradient is compared with a CPU's in fp32."""
COSINES = {"zero1_fp32": 0.99, "zero0_bf16_autocast": 0.9, "zero1_bf16": 0.9, "zero1_fp16": 0.95}
"""The least that the gradient's cosine may be: targets are assigned discretely, and rounding flips
some of them."""


def numbers(job: Job) -> None:
    """All of them."""
    weights = seasoned_weights()
    plain = _plain_gradient(weights)
    with device(job) as on:
        place = torch.device(on.name)
        for dtype in DTYPES:
            _look(
                job,
                f"squares, {dtype}",
                lambda item, kind=dtype: _squares(item, place, kind, job.pretend),
            )
        for dtype in DTYPES[:2]:
            _look(
                job,
                f"BatchNormFloat32, {dtype}",
                lambda item, kind=dtype: _batch_norm(item, place, kind),
            )
        _look(job, "loss", lambda item: _loss(item, place))
        ranks = join_world()
        for name in STEPS[:1] if job.pretend else STEPS:

            def step(item: Item, name: str = name) -> None:
                with small_engine(
                    ranks, applied(name, job.work), weights=weights, optimizer="SGD"
                ) as small:
                    result = small.step(keep_gradients=True)
                    _compare(item, name, sum(result.loss.values()), small.gradients, plain)

            _look(job, f"gradient of a step, {name}", step)
        leave()


def _look(job: Job, name: str, work: Callable[[Item], None]) -> None:
    with job.item(name) as item:
        work(item)


def _squares(item: Item, place: torch.device, dtype: torch.dtype, small: bool) -> None:
    """One large tensor, one of numbers near fp16's end, one of a single number, one of tiny ones;
    then inf and nan."""
    from yolods.zero.gradients import squares

    torch.manual_seed(0)
    counts = (10**5 if small else 10**7, 3, 1, 10**4 if small else 10**6)
    parts = [torch.randn(n).to(dtype) * s for n, s in zip(counts, (1, 2e4, 1, 1e-3), strict=True)]
    want = torch.stack([each.double().square().sum() for each in parts])
    on_device = [each.to(place) for each in parts]
    order = torch.arange(len(parts)).to(place)
    got = squares(on_device, order, len(parts)).cpu().double()
    item.facts["relative error"] = ((got - want).abs() / want).tolist()
    item.expect(
        max(item.facts["relative error"]) < SQUARES_APART, f"further than {SQUARES_APART} from fp64"
    )
    on_device[1][0], on_device[2][0] = float("inf"), float("nan")
    odd = squares(on_device, order, len(parts)).cpu()
    item.facts["with an inf and a nan"] = [str(value) for value in odd.tolist()]
    kept = bool(odd[1].isinf() and odd[2].isnan() and odd[0].isfinite() and odd[3].isfinite())
    item.expect(kept, "inf and nan are not where they were put")


def _batch_norm(item: Item, place: torch.device, dtype: torch.dtype) -> None:
    """Forward, backward and statistics beside torch's own BatchNorm in fp32 on a CPU, from the same
    rounded input."""
    from yolods.model.layers import BatchNormFloat32

    plain = torch.nn.BatchNorm2d(32)
    ours = torch.nn.BatchNorm2d(32).to(place)
    ours.__class__ = BatchNormFloat32
    for parameter in ours.parameters():
        parameter.data = parameter.data.to(dtype)
    given = torch.randn(4, 32, 40, 40).to(dtype)
    mine = given.to(place).contiguous(memory_format=torch.channels_last).requires_grad_()
    theirs = given.float().requires_grad_()
    weights = torch.randn(given.shape)
    out, wanted = ours(mine), plain(theirs)
    (out.float() * weights.to(place)).sum().backward()
    (wanted * weights).sum().backward()
    apart = {
        "output": distance(out.cpu().float(), wanted),
        "gradient": distance(mine.grad.cpu().float(), theirs.grad),
        "running mean": distance(ours.running_mean.cpu(), plain.running_mean),
        "running variance": distance(ours.running_var.cpu(), plain.running_var),
    }
    item.facts |= apart
    item.facts["statistics are"] = str(ours.running_var.dtype)
    item.expect(
        apart["output"] < ROUNDING[dtype], "the output is further off than a rounding of it"
    )
    item.expect(
        apart["gradient"] < 4 * ROUNDING[dtype], "the gradient is further off than a few roundings"
    )
    item.expect(
        max(apart["running mean"], apart["running variance"]) < 1e-4,
        "the statistics are not fp32's",
    )


def _loss(item: Item, place: torch.device) -> None:
    """The loss of the same raw outputs, rounded to each dtype, on the device and on a CPU."""
    from types import SimpleNamespace

    from yolods.model.loss.detection_loss import DetectionLoss

    net = plain_model().float()
    gains = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    batch = micro_batch(3, 4)
    with torch.no_grad():
        raw = net(batch["img"].float() / 255)
    for dtype in DTYPES:
        rounded = _mapped(raw, lambda each, kind=dtype: each.to(kind))
        wanted = DetectionLoss(net.model[-1], torch.device("cpu"), gains)(rounded, batch, 4)[1]
        there = _mapped(rounded, lambda each: each.to(place))
        found = DetectionLoss(net.model[-1], place, gains)(there, batch, 4)[1]
        apart = distance(found.cpu(), wanted)
        item.facts[f"{dtype}: relative to the CPU"] = apart
        item.expect(apart < 1e-4, f"{dtype}: the device's loss is {apart:.2g} from the CPU's")


def _mapped(raw: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {
        key: [change(each) for each in value] if isinstance(value, list) else change(value)
        for key, value in raw.items()
    }


def _plain_gradient(weights: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss and fp32 gradient of ultralytics' own model on the CPU, over the micro-batches of the
    first step."""
    net = plain_model(weights)
    losses = []
    for number in range(ACCUMULATION):
        loss, items = plain_loss(net, micro_batch(number))
        loss.backward()
        losses.append(sum(items))
    named = [
        (name, each.grad.clone()) for name, each in net.named_parameters() if each.grad is not None
    ]
    return sum(losses) / len(losses), dict(named)


def _compare(
    item: Item,
    name: str,
    loss: float,
    mine: dict[str, Tensor],
    plain: tuple[float, dict[str, Tensor]],
) -> None:
    wanted = plain[1]
    one = torch.cat([mine[key].cpu().double().flatten() for key in wanted])
    other = torch.cat([wanted[key].double().flatten() for key in wanted])
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    item.facts |= {"loss": loss, "CPU's loss": plain[0], "cosine": cosine}
    # In fp16 it is the loss scale times as long, where DeepSpeed has not taken that off yet.
    item.facts["norm over the CPU's"] = float(one.norm() / other.norm())
    item.expect(cosine > COSINES[name], f"the gradient's cosine with the CPU's is {cosine:.4f}")
    item.expect(abs(loss - plain[0]) < 0.05 * plain[0], "the loss is more than 5% from the CPU's")
