"""An exchange in short messages; between real ranks: tests/dist/test_early_reduction.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from yolods.distributed import exchange as module
from yolods.distributed.exchange import LONGEST_MESSAGE, Exchange, exchange


class Wire:
    """Rank 1 of 3, whose peers send ones of their own number."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[float]]] = []
        self.received: list[tuple[int, int]] = []
        self.waits = 0

    def _work(self) -> Any:
        def wait() -> None:
            self.waits += 1

        return SimpleNamespace(wait=wait)

    def isend(self, tensor: Tensor, peer: int, group: Any, tag: int) -> Any:
        self.sent.append((peer, tensor.tolist()))
        return self._work()

    def irecv(self, tensor: Tensor, peer: int, group: Any, tag: int) -> Any:
        tensor.fill_(peer)
        self.received.append((peer, tensor.numel()))
        return self._work()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    made = Wire()
    names = SimpleNamespace(
        get_rank=lambda _: 1,
        get_world_size=lambda _: 3,
        get_global_rank=lambda _, rank: 10 + rank,
    )
    monkeypatch.setattr(module, "dist", names)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(comm=made))
    return made


def test_every_rank_gets_its_part_and_the_own_one_is_copied(wire: Wire) -> None:
    output = torch.zeros(6)
    work = exchange(output, torch.arange(6.0), [2, 2, 2], [3, 2, 1], None)  # type: ignore[arg-type]
    assert output.tolist() == [10, 10, 3, 4, 12, 12]
    assert wire.sent == [(12, [5]), (10, [0, 1, 2])]
    assert not wire.waits and not work.get_future().done()
    assert work.wait() and wire.waits == 4 and work.get_future().done()


def test_an_empty_part_is_no_message(wire: Wire) -> None:
    exchange(torch.zeros(0), torch.arange(2.0), [0, 0, 0], [2, 0, 0], None)  # type: ignore[arg-type]
    assert wire.sent == [(10, [0, 1])] and not wire.received


def test_a_long_part_is_several_messages(wire: Wire) -> None:
    size = LONGEST_MESSAGE // 2 + 1
    part = torch.zeros(size, dtype=torch.bfloat16)
    exchange(torch.zeros(0, dtype=torch.bfloat16), part, [0, 0, 0], [size, 0, 0], None)  # type: ignore[arg-type]
    assert [len(values) for _, values in wire.sent] == [size - 1, 1]


def test_an_exchange_is_a_work() -> None:
    assert issubclass(Exchange, dist.Work)
