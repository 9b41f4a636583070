"""Programs with one known fault each, and without it, for the detectors' tests. Run on ranks."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.rehearsal.engines import WARM, engine_of, take_step
from tests.rehearsal.pretended import Record, World
from tests.rehearsal.pretended.__main__ import main
from tests.rehearsal.pretended.streams import Event, Stream
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine

CUDA = "cuda"

WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda device: device.sum().item(),
    "bool": lambda device: bool(device.any()),
    "float": lambda device: float(device[0]),
    "tolist": lambda device: device.tolist(),
    "repr": lambda device: repr(device),
    "cpu": lambda device: device.cpu(),
    "to the host": lambda device: device.to("cpu"),
    "out of a list": lambda device: torch.tensor([1.0], device=CUDA),
    "new tensor": lambda device: device.new_tensor([1.0]),
    "pageable": lambda device: torch.ones(3).to(CUDA, non_blocking=True),
    "pinned, but waited for": lambda device: torch.ones(3).pin_memory().to(CUDA),
    "into pageable": lambda device: torch.empty(3).copy_(device, non_blocking=True),
    "each of two": lambda device: torch._foreach_copy_(
        [torch.empty(3), torch.empty(3)], [device, device]
    ),
    "nonzero": lambda device: device.nonzero(),
    "mask": lambda device: device[device > 0],
    "places on the host": lambda device: device[torch.tensor([0, 1])],
    "list of places": lambda device: device[[0, 1]],
    "unique": lambda device: device.unique(),
    "repeat": lambda device: device.repeat_interleave(device.long()),
    "synchronize": lambda device: torch.cuda.synchronize(),
    "stream": lambda device: torch.cuda.current_stream().synchronize(),
    "event": lambda device: torch.cuda.current_stream().record_event().synchronize(),
    "barrier": lambda device: dist.barrier(),
}
"""Each blocks the host once; the one with two copies, twice."""

NO_WAITS: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda device: (device * 2 + 1).sum(),
    "number of the host": lambda device: device + torch.tensor(2.0),
    "new full": lambda device: device.new_full((1,), 2.0),
    "factory": lambda device: torch.zeros(3, device=CUDA),
    "like": lambda device: torch.zeros_like(device),
    "pinned": lambda device: torch.ones(3).pin_memory().to(CUDA, non_blocking=True),
    "into pinned": lambda device: torch.empty(3, pin_memory=True).copy_(device, non_blocking=True),
    "filled by a mask": lambda device: device.__setitem__(device > 0, 1.0),
    "repeat of a known size": lambda device: device.repeat_interleave(device.long(), output_size=3),
    "places on the device": lambda device: device[torch.zeros(2, dtype=torch.int64, device=CUDA)],
    "where": lambda device: torch.where(device > 0, device, 0.0),
    "host alone": lambda device: torch.ones(3).sum().item(),
    "all-reduce": lambda device: dist.all_reduce(device),
    "gradient": lambda device: (device.clone().requires_grad_() * 2).sum().backward(),
}
"""None blocks the host."""


def waits_of(ranks: Ranks, within: World) -> dict[str, dict[str, int]]:
    """The waits of each of `WAITS` and `NO_WAITS` by place."""
    found = {}
    for name, work in (WAITS | NO_WAITS).items():
        device = torch.ones(3, device=CUDA)
        within.record.clear()
        work(device)
        found[name] = within.record.waits_by_place()
    assert not within.record.faults()
    return found


def mixed_up(ranks: Ranks, within: World) -> dict[str, Record]:
    """The records of operations on host and device tensors, and of host collectives."""
    host, device = torch.ones(3), torch.ones(3, device=CUDA)
    gloo = dist.new_group([0], backend="gloo")
    works: dict[str, Callable[[], object]] = {
        "sum of both": lambda: device + host,
        "one list": lambda: torch.cat([device, host]),
        "into the host's": lambda: host.add_(device),
        "fused": lambda: torch._fused_sgd_(
            *([device], [host], []),
            **{
                "weight_decay": 0.0,
                "momentum": 0.0,
                "lr": 0.1,
                "dampening": 0.0,
                "nesterov": False,
            },
            **{"maximize": False, "is_first_step": False},
        ),
        "numpy": lambda: _refused(device.numpy),
        "host collective": lambda: dist.all_reduce(host),
        "alike": lambda: (device + device, host + host),
        "host collective on gloo": lambda: dist.all_reduce(host, group=gloo),
        "device collective": lambda: dist.all_reduce(device),
    }
    return {name: _seen(within, work) for name, work in works.items()}


def _refused(call: Callable[[], object]) -> None:
    try:
        call()
    except TypeError:
        return
    raise AssertionError("CUDA would have refused it")


def _seen(world: World, work: Callable[[], object]) -> Record:
    world.record.clear()
    work()
    seen = Record(*(each.copy() for each in _counters(world.record)))
    world.record.clear()
    return seen


def _counters(record: Record) -> tuple[Any, ...]:
    return record.waits, record.mixups, record.host_collectives, record.races


def races_of(ranks: Ranks, within: World) -> dict[str, int]:
    """The number of races in each program on two streams."""
    found = {}
    for work in (
        *(
            side_reads_unordered,
            side_reads_after_wait,
            side_reads_after_event,
            side_reads_after_host,
        ),
        *(side_uses_other_half, host_reads_too_early, host_reads_in_time, host_rewrites_too_early),
        *(host_rewrites_in_time, collective_unordered, collective_in_order),
    ):
        within.record.clear()
        work()
        found[work.__name__] = within.record.races.total()
        torch.cuda.synchronize()
    return found


def side_reads_unordered() -> None:
    """A side stream reads a tensor that the current stream is still writing."""
    value = torch.ones(4, device=CUDA)
    with torch.cuda.stream(torch.cuda.Stream()):
        value.sum()


def side_reads_after_wait() -> None:
    """The side stream waits for the current stream first."""
    value, side = torch.ones(4, device=CUDA), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        value.sum()


def side_reads_after_event() -> None:
    """The side stream waits for an event of the current stream first."""
    value, side = torch.ones(4, device=CUDA), torch.cuda.Stream()
    torch.cuda.current_stream().record_event().wait(side)
    with torch.cuda.stream(side):
        value.sum()


def side_reads_after_host() -> None:
    """The host synchronises before it uses the side stream."""
    value = torch.ones(4, device=CUDA)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        value.sum()


def side_uses_other_half() -> None:
    """Both streams write, to different bytes."""
    value, side = torch.empty(4, device=CUDA), torch.cuda.Stream()
    value[:2].fill_(1)
    with torch.cuda.stream(side):
        value[2:].fill_(2)


def host_reads_too_early() -> None:
    """The host reads a buffer during a copy to it."""
    torch.ones(4, device=CUDA).to("cpu", non_blocking=True).tolist()


def host_reads_in_time() -> None:
    """The host waits for the copy before it reads."""
    copy = torch.ones(4, device=CUDA).to("cpu", non_blocking=True)
    torch.cuda.current_stream().synchronize()
    copy.tolist()


def host_rewrites_too_early() -> None:
    """The host overwrites a buffer during a copy from it."""
    buffer = torch.ones(4).pin_memory()
    buffer.to(CUDA, non_blocking=True)
    buffer.fill_(2)


def host_rewrites_in_time() -> None:
    """The host waits for the copy before it overwrites the buffer."""
    buffer = torch.ones(4).pin_memory()
    buffer.to(CUDA, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    buffer.fill_(2)


def collective_unordered() -> None:
    """The result of an all-reduce is used before its `wait`."""
    value = torch.ones(4, device=CUDA)
    work = dist.all_reduce(value, async_op=True)
    value.mul_(2)
    work.wait()


def collective_in_order() -> None:
    """The result of an all-reduce is used after its `wait`."""
    value = torch.ones(4, device=CUDA)
    dist.all_reduce(value, async_op=True).wait()
    value.mul_(2)


def bytes_of(ranks: Ranks, within: World) -> list[int]:
    """Device bytes before, with a tensor of 4000 bytes, with a view of it, and after; the peak."""
    ledger = within.ledger
    ledger.reset_peak()
    seen = [ledger.now]
    value = torch.zeros(1000, device=CUDA)
    seen.append(ledger.now)
    value = value[:1]
    seen.append(ledger.now)
    del value
    return [*seen, ledger.now, ledger.peak]


def cast(ranks: Ranks, within: World) -> dict[str, torch.dtype]:
    """The dtypes of operations' results under bf16 autocast of the device."""
    images, kernel = (
        torch.ones(1, 3, 8, 8, device=CUDA),
        torch.ones(4, 3, 3, 3, device=CUDA, requires_grad=True),
    )
    low = images.bfloat16()
    with torch.autocast(CUDA, torch.bfloat16):
        made = {
            "convolution": F.conv2d(images, kernel),
            "matmul": images @ images,
            "convolution on the host": F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)),
            "relu": low.relu(),
            "softmax": low.softmax(1),
            "sum": low.sum(),
            "sum with its dtype": low.sum(dtype=torch.bfloat16),
            "exp": low.exp(),
            "upsampled": F.interpolate(low, scale_factor=2),
            "scattered": torch.zeros(3, device=CUDA).scatter_add(
                0, torch.zeros(3, dtype=torch.int64, device=CUDA), low.flatten()[:3]
            ),
            # In autocast's list for CPUs, and not for CUDA.
            "padded": F.pad(low, (1, 1, 1, 1), mode="replicate"),
        }
        with torch.autocast(CUDA, enabled=False):
            made["switched off"] = F.conv2d(images, kernel)
    made["after"] = F.conv2d(images, kernel)
    made["convolution"].sum().backward()
    return {name: value.dtype for name, value in made.items()} | {"gradient": kernel.grad.dtype}


def faults_in_a_step(ranks: Ranks, within: World) -> dict[str, Record]:
    """The records of a real engine's step, without and with one fault planted in its loss."""
    plants: dict[str, Callable[[Tensor], object]] = {
        "nothing": lambda loss: None,
        "item": forgotten_item,
        "mix-up": forgotten_device,
        "host collective": forgotten_collective,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_of(ranks, "zero1_fp32", Path(folder)) as engine,
    ):
        for number in range(WARM):
            take_step(engine, number, 1)
        return {
            name: _seen(within, lambda p=plant: _planted(engine, p))
            for name, plant in plants.items()
        }


def _planted(engine: Engine, plant: Callable[[Tensor], object]) -> None:
    loss = engine._loss

    def with_plant(*arguments: Any) -> Any:
        value, items = loss(*arguments)
        plant(items)
        return value, items

    with patch.object(engine, "_loss", with_plant):
        take_step(engine, WARM, 1)


def forgotten_item(items: Tensor) -> None:
    """A number is read, for example to print it."""
    items[0].item()


def forgotten_device(items: Tensor) -> None:
    """A tensor is created without a device."""
    items + torch.ones(len(items))


def forgotten_collective(items: Tensor) -> None:
    """A host tensor is reduced over the ranks."""
    dist.all_reduce(torch.ones(len(items)))


def waits_taken_out(ranks: Ranks, within: World) -> dict[str, int]:
    """The races in ZeRO-3's steps, unchanged and without waits between streams."""
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_of(ranks, "zero3_fp32", Path(folder)) as engine,
    ):
        for name, out in (
            ("as it is", ()),
            ("taken out", ((Stream, "wait_stream"), (Stream, "wait_event"))),
        ):
            with ExitStack() as stack:
                for owner, method in (*out, *(((Event, "wait"),) if out else ())):
                    stack.enter_context(patch.object(owner, method, lambda *_: None))
                within.record.clear()
                for number in range(2):
                    take_step(engine, number, 1)
                found[name] = within.record.races.total()
    return found


def as_a_script(script: str) -> None:
    """Run `python -m tests.rehearsal.pretended SCRIPT 7` in this process."""
    with patch.object(sys, "argv", ["pretended", script, "7"]):
        main()


def beside_an_unused_gpu(ranks: Ranks, within: World) -> dict[str, Any]:
    """A step under DS_ACCELERATOR=cpu on a machine that has a GPU."""
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_of(ranks, "zero1_fp32", Path(folder)) as engine,
    ):
        result = take_step(engine, 0, 1)
        where = {str(parameter.device) for parameter in engine.net.parameters()}
    return {
        "ranks": str(ranks.device),
        "weights": where,
        "loss": result.loss,
        "peak": within.ledger.peak,
    }
