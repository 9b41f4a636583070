"""Named tensors from one rank to another, over a queue in the place of gloo. Real ranks:
tests/dist/test_travel.py."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from yolods.distributed import state_transfer
from yolods.distributed.phases import PHASES
from yolods.distributed.state_transfer import receive_tensors, send_tensors


class Wire:
    """torch.distributed's sends and receives between two ranks of one process; what is sent is what
    lies there."""

    def __init__(self) -> None:
        self.objects: queue.Queue = queue.Queue()
        self.tensors: queue.Queue = queue.Queue()
        self.called: list[tuple[str, int, Any, bool]] = []

    def _note(self, name: str, peer: int, group: Any) -> None:
        self.called.append((name, peer, group, PHASES.waits))

    def send_object_list(self, values: list, peer: int, group: Any) -> None:
        self._note("send", peer, group)
        self.objects.put(values)

    def recv_object_list(self, values: list, peer: int, group: Any) -> None:
        self._note("receive", peer, group)
        values[:] = self.objects.get(timeout=5)

    def send(self, tensor: torch.Tensor, peer: int, group: Any) -> None:
        """As gloo: the bytes of the storage from the tensor's first element on."""
        self._note("send", peer, group)
        assert tensor.is_contiguous()
        self.tensors.put(tensor.clone().view(-1))

    def recv(self, tensor: torch.Tensor, peer: int, group: Any) -> None:
        self._note("receive", peer, group)
        tensor.view(-1).copy_(self.tensors.get(timeout=5))


@pytest.fixture
def wire(monkeypatch) -> Wire:
    made = Wire()
    monkeypatch.setattr(state_transfer, "dist", made)
    return made


STATE = {
    "weight": torch.arange(6.0).view(2, 3).t(),  # lies in another order than it reads
    "count": torch.tensor(7),
    "nothing": torch.zeros(0, 4, dtype=torch.bfloat16),
    "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
}


def test_names_shapes_types_and_values_arrive_in_their_order(wire: Wire):
    send_tensors(STATE.items(), 1, None)
    found = dict(receive_tensors(0, None))
    assert list(found) == list(STATE)
    for name, sent in STATE.items():
        assert (found[name].shape, found[name].dtype) == (sent.shape, sent.dtype)
        assert torch.equal(found[name], sent)
    assert wire.objects.empty() and wire.tensors.empty()


def test_a_second_state_does_not_mix_with_the_first(wire: Wire):
    send_tensors({"a": torch.ones(2)}.items(), 1, None)
    send_tensors({"a": torch.zeros(3)}.items(), 1, None)
    found = [dict(receive_tensors(0, None))["a"].tolist() for _ in range(2)]
    assert found == [[1, 1], [0, 0, 0]]


def test_nothing_at_all_can_be_sent(wire: Wire):
    send_tensors([], 1, None)
    assert list(receive_tensors(0, None)) == []


def test_a_tensor_is_made_when_the_one_before_has_been_sent(wire: Wire):
    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(3):
            assert wire.tensors.qsize() == number
            yield str(number), torch.ones(2)

    send_tensors(tensors(), 1, None)
    arriving = receive_tensors(0, None)
    assert next(arriving)[0] == "0" and wire.tensors.qsize() == 2


def test_while_it_sends_and_receives_a_rank_waits_for_the_other(wire: Wire):
    """Otherwise the watchdog would count it as this rank's own time."""
    group = object()
    send_tensors({"a": torch.ones(2)}.items(), 3, group)
    list(receive_tensors(2, group))
    sent, received = [("send", 3, group, True)] * 3, [("receive", 2, group, True)] * 3
    assert wire.called == sent + received
    assert not PHASES.waits
