"""The time that a rank waits for another is marked as that wherever it waits, and what it works
itself is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.parity.small import ACCUMULATION, micro_batch, small_engine
from tests.ranks import on_ranks
from yolods.distributed.phases import PHASES
from yolods.distributed.world import Ranks
from yolods.optim.lr_schedule import Step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(220)]

LATE = 1.5
"""Seconds that rank 1 keeps rank 0 waiting."""


class Watch:
    """Samples this process as the watchdog does."""

    seconds = 0.0
    """That were marked as waiting."""


@contextmanager
def watching() -> Iterator[Watch]:
    watch, over = Watch(), threading.Event()

    def sample() -> None:
        before = time.monotonic()
        while not over.wait(0.01):
            now = time.monotonic()
            watch.seconds += (now - before) * PHASES.waits
            before = now

    thread = threading.Thread(target=sample)
    thread.start()
    yield watch
    over.set()
    thread.join()


def call(ranks: Ranks, name: str) -> None:
    """One meeting of the ranks."""
    tensor, whole = torch.ones(4), torch.empty(4 * ranks.size)
    calls: dict[str, Any] = {
        "barrier": ranks.barrier,
        "from_main": lambda: (
            (ranks.to_main(None) and None) or (ranks.from_main(1) and ranks.barrier())
        ),
        "average": lambda: ranks.average_([tensor]),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, tensor),
        "later": lambda: dist.all_reduce(tensor, async_op=True).wait(),
        "receipt": lambda: (
            dist.irecv(tensor, 1).wait() if ranks.rank == 0 else dist.isend(tensor, 0).wait()
        ),
    }
    calls[name]()


CALLS = ("barrier", "from_main", "average", "all_gather", "later", "receipt")


def measure_calls(ranks: Ranks) -> dict[str, float]:
    found = {}
    for name in CALLS:
        ranks.barrier()
        with watching() as watch:
            if ranks.rank == 1:
                time.sleep(LATE / 3)
            call(ranks, name)
        found[name] = watch.seconds
    return found


def test_meetings_of_ranks() -> None:
    waited, late = on_ranks("tests.dist.test_waits:measure_calls", [2])[2]
    assert all(seconds > 0.7 * LATE / 3 for seconds in waited.values()), waited
    assert all(seconds < 0.3 * LATE / 3 for seconds in late.values()), late


def measure_steps(ranks: Ranks, names: list[str]) -> dict[str, float]:
    """Seconds marked in a step of which rank 1 has its first images late, by configuration."""
    found = {}
    for name in names:
        with small_engine(ranks, name, optimizer="SGD") as small:
            small.step(0)
            ranks.barrier()
            with watching() as watch:
                small.engine.train_step(Step(2, ACCUMULATION, 0, (0.01,) * 3, 0.9), batches(ranks))
            found[name] = watch.seconds
    return found


def batches(ranks: Ranks) -> Iterator[dict[str, Any]]:
    if ranks.rank == 1:
        time.sleep(LATE)
    for number in range(ACCUMULATION):
        yield micro_batch(2 * number + ranks.rank)


def test_whatever_deepspeed_waits_in() -> None:
    """Under ZeRO-3 in forward passes, else in backward passes or the step."""
    waited, _ = on_ranks(
        "tests.dist.test_waits:measure_steps", [2], timeout=150, names=["zero2_fp32", "zero3_fp32"]
    )[2]
    assert all(seconds > 0.6 * LATE for seconds in waited.values()), waited
