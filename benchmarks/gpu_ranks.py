"""Several ranks: on one device, where NCCL or gloo allows it, and on two."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_job import Item, Job, Skip
from benchmarks.gpu_part import prepare
from benchmarks.gpu_runs import RESERVE, Run, read, words
from benchmarks.gpu_world import world

SILENCE = 30.0
"""Seconds after a rank's death by which the others have to be gone."""
ZERO = ("zero1_fp32", "zero2_bf16", "zero2_fp16", "zero3_bf16", "zero3_fp16")
"""Configurations whose step is taken on two ranks."""


def one_device(job: Job) -> None:
    """Two ranks that share the first GPU."""
    with job.item("NCCL, two ranks on one device") as item:
        if job.pretend:
            raise Skip("no NCCL on a CPU")
        found = world(job, "benchmarks.gpu_ranks:meet", 2, 12, backend="nccl", share=True)
        item.facts["refused"] = all("failed" in each for each in found)
        item.facts["what NCCL says"] = found[0].get("failed", found[0])
    with job.item("gloo, two ranks on one device: collectives of its tensors") as item:
        found = world(job, "benchmarks.gpu_ranks:meet", 2, 60, backend="gloo", share=True)
        item.facts |= _same(item, found)


def meet(*, backend: str, share: bool, pretend: bool, work: Path) -> dict[str, Any]:
    """On a rank: each collective once, on tensors of the device; how many milliseconds the second
    of two took."""
    import torch
    import torch.distributed as dist

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = torch.device("cpu") if pretend else torch.device("cuda", 0 if share else rank)
    if not pretend:
        torch.cuda.set_device(place)
    dist.init_process_group(backend, timeout=_minutes(1))
    count = 2**16 if pretend else 2**26
    mine, all_of_them = torch.ones(count, device=place), torch.empty(size * count, device=place)
    other = (rank + 1) % size

    def exchange() -> None:
        """Rank 0 sends first: the order in which pipelines meet."""
        for turn in range(2):
            (dist.send if rank == turn else dist.recv)(mine, other)

    ways: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(mine),
        "broadcast": lambda: dist.broadcast(mine, 0),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(all_of_them, mine),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(mine, all_of_them),
        "send and recv": exchange,
    }
    told: dict[str, Any] = {}
    for name, call in ways.items():
        try:
            told[name] = _milliseconds(call, place)
        except RuntimeError as error:  # which of them gloo has for a GPU's tensors is what is asked
            if backend == "nccl":
                raise
            told[name] = f"refused: {str(error).splitlines()[0][:120]}"
    dist.destroy_process_group()
    return told


def _minutes(count: int) -> Any:
    from datetime import timedelta

    return timedelta(minutes=count)


def _milliseconds(call: Callable[[], object], place: Any) -> list[float]:
    """Of the first call, in which ranks meet, and of the second."""
    import torch

    found = []
    for _ in range(2):
        if place.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if place.type == "cuda":
            torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - began))
    return found


def nccl(job: Job) -> None:
    """NCCL's first use on two GPUs: how long ranks take to meet, and what they reach then (256
    MiB)."""
    with job.item("gloo on CPUs" if job.pretend else "NCCL") as item:
        item.facts |= _same(
            item,
            world(
                job, "benchmarks.gpu_ranks:meet", 2, job.left, backend=_backend(job), share=False
            ),
        )


def _backend(job: Job) -> str:
    return "gloo" if job.pretend else "nccl"


def zero(job: Job) -> None:
    """A step of each configuration on two ranks, beside ultralytics' own model on a CPU with the
    batches of both."""
    for name in ZERO[:2] if job.pretend else ZERO:
        with job.item(name) as item:
            found = world(job, "benchmarks.gpu_ranks:take_zero_step", 2, job.left, name=name)
            first = _same(item, found)
            item.facts |= first
            item.expect(first.get("cosine", 0) > 0.9, "the gradient is not that of both batches")


def take_zero_step(*, name: str, pretend: bool, work: Path) -> dict[str, Any]:
    """On a rank: one step, and how far its gradient is from the plain model's; then the waits of
    another."""
    import torch

    prepare()
    from benchmarks.gpu_device import Device, Pretended
    from benchmarks.gpu_engines import applied
    from tests.parity.small import (
        ACCUMULATION,
        micro_batch,
        plain_loss,
        plain_model,
        seasoned_weights,
        small_engine,
    )
    from yolods.distributed.world import join_world, leave

    ranks, weights = join_world(), seasoned_weights()
    folder = work / str(ranks.rank)
    folder.mkdir(exist_ok=True)
    on = Pretended() if pretend else Device()
    with small_engine(ranks, applied(name, folder), weights=weights, optimizer="SGD") as small:
        result = small.step(keep_gradients=True)
        mine = small.gradients
        small.step(1)
        with on.waits() as waits:
            again = small.step(2)
    leave()
    net = plain_model(weights)
    for number in range(ACCUMULATION * ranks.size):
        plain_loss(net, micro_batch(number))[0].backward()
    named = dict(net.named_parameters())
    one = torch.cat([each.cpu().double().flatten() for each in mine.values()])
    other = torch.cat([named[key].grad.double().flatten() for key in mine])
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    told = {
        "loss": sum(result.loss.values()),
        "norm": result.grad_norm,
        "cosine": cosine,
        "third loss": sum(again.loss.values()),
    }
    return {**told, "waits": sum(waits.values()), "by line": dict(waits)}


def _same(item: Item, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What rank 0 told; a doubt for each rank that failed or has other losses."""
    for each in found:
        item.expect("failed" not in each, each.get("failed", ""))
        item.expect(each.get("loss") == found[0].get("loss"), "ranks tell different losses")
    return dict(found[0])


def pipeline(job: Job) -> None:
    """Two stages: the waits of a step on each, and a run of two epochs."""
    with job.item("a step of pipeline2_fp32") as item:
        found = world(
            job, "benchmarks.gpu_ranks:take_pipeline_step", 2, job.left / 2 if job.pretend else 40
        )
        if any("skipped" in each for each in found):
            raise Skip(found[0]["skipped"])
        for stage, each in enumerate(found):
            item.facts[f"stage {stage}"] = each
            item.expect("failed" not in each, each.get("failed", ""))
            item.expect(
                each.get("waits", 0) <= 1,
                f"stage {stage}: {each.get('waits')} waits in a step, 1 expected",
            )
    with job.item("a run under pipeline2_fp32") as item:
        told = _two_ranks("pipeline2_fp32", "pipeline", job, epochs=1 if job.pretend else 2)
        with Run("pipeline", job.work, told) as run:
            read(item, run, run.wait(job.left - RESERVE), 1 if job.pretend else 2)


def take_pipeline_step(*, pretend: bool, work: Path) -> dict[str, Any]:
    """On a rank, a stage: the loss of a step, its waits, and the most bytes that were allocated."""
    import torch

    prepare()
    try:
        from tests.rehearsal.engines import engine_of, take_step
    except ModuleNotFoundError:
        return {"skipped": "tests/rehearsal is not in this checkout"}
    from benchmarks.gpu_device import Device, Pretended
    from yolods.distributed.world import join_world, leave

    ranks, on = join_world(), Pretended() if pretend else Device()
    with engine_of(ranks, "pipeline2_fp32", work) as engine:
        for number in range(3):
            take_step(engine, number, 4)
        with on.waits() as waits:
            result = take_step(engine, 3, 4)
        peak = 0 if pretend else torch.cuda.max_memory_allocated()
    leave()
    told = {"loss": sum(result.loss.values()), "waits": sum(waits.values()), "by line": dict(waits)}
    return {**told, "peak, MiB": peak / 2**20}


NO_RESTART = ("--max-restarts", "0")
"""What has been killed is to stay so: the time until all others are gone is measured."""


def death(job: Job) -> None:
    """A rank is killed in the middle of a run: what is said, and how soon all others are gone."""
    for name in ("zero2_fp32",) if job.pretend else ("zero2_fp32", "pipeline2_fp32"):
        with (
            job.item(f"a rank of {name} is killed") as item,
            Run(name, job.work, [*_two_ranks(name, name, job, epochs=50), *NO_RESTART]) as run,
        ):
            _kill(item, run, job.left - RESERVE)


def _kill(item: Item, run: Run, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not run.rows() and run.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    if not run.rows():
        raise RuntimeError(f"no epoch was over before the time was: {run.end_of_screen()}")
    victim = _rank(run.process.pid, 1)
    began, length = time.monotonic(), run.screen.stat().st_size
    victim.send_signal(signal.SIGKILL)
    status = run.wait(min(SILENCE * 2, deadline - time.monotonic()))
    item.facts["all others gone after, s"] = gone = time.monotonic() - began
    item.facts["exit status"] = status
    said = run.screen.read_bytes()[length:].decode("utf-8", "replace").splitlines()
    item.facts["what was said"] = [line for line in said if "rank 1" in line][:3]
    item.expect(
        status not in (None, 0) and gone < SILENCE, f"exit status {status} after {gone:.0f} s"
    )
    item.expect(bool(item.facts["what was said"]), f"nobody names rank 1: {' / '.join(said[-4:])}")


def _rank(launcher: int, rank: int) -> psutil.Process:
    """The process of a rank below a launcher, by its environment; children of it have the same, so
    the eldest."""
    found = []
    for process in psutil.Process(launcher).children(recursive=True):
        with suppress(psutil.Error):
            if process.environ().get("RANK") == str(rank):
                found.append(process)
    if not found:
        raise RuntimeError(f"no process is rank {rank}")
    return min(found, key=psutil.Process.create_time)


def _two_ranks(config: str, name: str, job: Job, *, epochs: int) -> list[str]:
    told = words(
        "demo",
        config,
        job.work,
        name,
        job,
        imgsz=64 if job.pretend else 320,
        batch=32,
        epochs=epochs,
    )
    told[told.index("--num_gpus") + 1] = "2"
    return told
