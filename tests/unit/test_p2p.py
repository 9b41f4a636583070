"""Tensors on their way over a cut: told once, sent without copies, in the memory they have."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import pytest
import torch

from yolods.distributed.p2p import DTYPES, P2PChannel, _Form, _pack, _unpack
from yolods.distributed.phases import PHASES
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import build_graph, live

CPU = torch.device("cpu")


class Wire:
    """Stands in for torch.distributed between two links: tensors wait in a queue until they are
    received."""

    def __init__(self) -> None:
        self.queue: deque[torch.Tensor] = deque()
        self.waited: list[int] = []
        self.sent: list[torch.Tensor] = []
        self.used: list[tuple[Any, int]] = []

    def isend(self, tensor: torch.Tensor, dst: int, group: Any, tag: int) -> Any:
        assert tensor.is_contiguous(), "gloo and NCCL send contiguous memory only"
        self.queue.append(tensor.clone())
        self.used.append((group, tag))
        self.sent.append(tensor)
        return _Work(self, len(self.sent) - 1)

    def irecv(self, tensor: torch.Tensor, src: int, group: Any, tag: int) -> Any:
        assert tensor.is_contiguous()
        came = self.queue.popleft()
        assert came.shape == tensor.shape and came.dtype == tensor.dtype
        tensor.copy_(came)
        return _Work(self, -1)


class _Work:
    def __init__(self, wire: Wire, number: int) -> None:
        self._wire, self._number = wire, number

    def wait(self) -> None:
        if self._number >= 0:
            self._wire.waited.append(self._number)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> tuple[Wire, P2PChannel, P2PChannel]:
    """The wire, a link that sends on it and one that receives from it."""
    wire = Wire()
    monkeypatch.setattr("torch.distributed.isend", wire.isend)
    monkeypatch.setattr("torch.distributed.irecv", wire.irecv)
    return wire, P2PChannel(1, None, CPU), P2PChannel(0, None, CPU)


def image(*shape: int, last: bool = True) -> torch.Tensor:
    tensor = torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 6), (7,), (3, 6), (2, 8, 4, 4), (1, 2, 3, 4, 5)])
def test_forms_survive_the_header(dtype, shape):
    forms = [_Form.of(torch.empty(shape, dtype=dtype)), _Form((2, 3, 4, 5), dtype, True)]
    assert _unpack(_pack(forms).tolist()) == forms


def test_a_header_tells_nine_images_and_refuses_ten():
    forms = [_Form((2, 3, 4, 5), torch.float32, False)] * 9
    assert _unpack(_pack(forms).tolist()) == forms
    with pytest.raises(
        ValueError, match="10 tensors cross a cut; a header of 64 words cannot hold their shapes"
    ):
        _pack([*forms, forms[0]])


@pytest.mark.parametrize("name", ["yolov5n", "yolov5[2.0,0.1]6"])
def test_no_cut_of_a_yolov5_overflows_the_header(name):
    graph = build_graph(architecture(parse_name(name), 80, 3))
    assert max(len(live(graph, cut)) for cut in range(len(graph.nodes))) <= 9


def test_channels_last_memory_is_sent_as_it_lies():
    tensor = image(2, 8, 3, 5)
    form = _Form.of(tensor)
    assert form.channels_last
    dense = form.dense(tensor)
    assert dense.shape == (2, 3, 5, 8) and dense.is_contiguous()
    assert dense.data_ptr() == tensor.data_ptr()
    assert form.empty(CPU).stride() == tensor.stride()


@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (2, 1, 4, 4), (1, 1, 1, 1)])
def test_memory_that_is_both_formats_counts_as_the_plain_one(shape):
    tensor = image(*shape)
    assert not _Form.of(tensor).channels_last
    assert _Form.of(tensor).dense(tensor).is_contiguous()


def test_a_gradient_of_the_other_format_is_brought_to_the_one_agreed():
    form = _Form.of(image(2, 8, 4, 4))
    gradient = image(2, 8, 4, 4, last=False)
    dense = form.dense(gradient)
    assert dense.is_contiguous()
    assert torch.equal(dense.permute(0, 3, 1, 2), gradient)
    sliced = image(2, 16, 4, 4)[:, ::2]
    assert torch.equal(form.dense(sliced).permute(0, 3, 1, 2), sliced)


def test_a_message_arrives_in_value_and_in_memory(ends):
    wire, sender, receiver = ends
    sent = [
        image(2, 8, 4, 4),
        image(2, 3, 4, 4, last=False),
        torch.arange(5),
        torch.rand(2, 3).bfloat16(),
    ]
    sender.send(sent)
    came = receiver.receive().wait()
    assert not wire.queue
    for mine, other in zip(came, sent, strict=True):
        assert mine.dtype == other.dtype and mine.stride() == other.stride()
        assert torch.equal(mine, other)


def test_the_header_goes_once_a_key_and_every_time_without_one(ends):
    wire, sender, receiver = ends
    for key, tensors in (("a", 2), ("a", 1), ("b", 2), ("a", 1), (None, 2), (None, 2)):
        before = len(wire.sent)
        value = image(2, 4, 4, 4) if key != "b" else image(2, 4, 8, 8)
        sender.send([value], key)
        assert len(wire.sent) - before == tensors
        assert torch.equal(receiver.receive(key).wait()[0], value)
    assert not wire.queue


def test_forms_that_both_ends_expect_need_no_header(ends):
    wire, sender, receiver = ends
    activation = image(2, 8, 4, 4)
    for end in ends[1:]:
        end.expect([activation], "gradient")
    gradient = image(2, 8, 4, 4, last=False)
    sender.send([gradient], "gradient")
    assert len(wire.sent) == 1
    (came,) = receiver.receive("gradient").wait()
    assert torch.equal(came, gradient) and came.stride() == activation.stride()


def test_a_tensor_without_elements_is_told_and_not_sent(ends):
    wire, sender, receiver = ends
    sender.send([torch.zeros(0, 6)])
    assert len(wire.sent) == 1
    (came,) = receiver.receive().wait()
    assert came.shape == (0, 6)


def test_graphs_do_not_travel_and_bytes_are_counted(ends):
    wire, sender, _ = ends
    sender.send([(image(2, 8, 4, 4).requires_grad_() * 2)], "a")
    assert not wire.sent[-1].requires_grad
    assert sender.bytes == 64 * 8 + 2 * 8 * 4 * 4 * 4
    sender.send([image(2, 8, 4, 4).bfloat16()], "b")
    assert sender.bytes == 2 * 64 * 8 + 2 * 8 * 4 * 4 * (4 + 2)


def test_draining_waits_for_the_oldest_first_and_leaves_the_newest(ends):
    wire, sender, _ = ends
    for _ in range(4):
        sender.send([torch.rand(3), torch.rand(3)], "a")
    assert wire.waited == []
    sender.drain(leave=2)
    assert wire.waited == [0, 1, 2, 3, 4]  # the header, and two messages of two tensors
    sender.drain()
    assert wire.waited == [*range(9)]
    sender.drain()
    assert len(wire.waited) == 9


def test_a_tensor_is_held_until_it_is_let_go(ends):
    wire, sender, _ = ends
    held = []
    for _ in range(3):
        tensor = torch.rand(1000)
        held.append(weakref.ref(tensor.untyped_storage()))
        sender.send([tensor], "a")
        del tensor
    wire.sent.clear()
    assert all(ref() is not None for ref in held)
    sender.drain(leave=1)
    assert [ref() is not None for ref in held] == [False, False, True]


def test_headers_go_by_the_hosts_group_and_stay_on_the_host(monkeypatch):
    wire = Wire()
    monkeypatch.setattr("torch.distributed.isend", wire.isend)
    monkeypatch.setattr("torch.distributed.irecv", wire.irecv)
    sender = P2PChannel(1, "device", torch.device("meta"), headers="hosts", tag=3)
    sender.send([torch.empty(2, 3, device="meta")], "a")
    assert wire.used == [("hosts", 3), ("device", 3)]
    assert [str(tensor.device) for tensor in wire.sent] == ["cpu", "meta"]
    wire.queue.pop()
    wire.queue.append(torch.empty(2, 3, device="meta"))
    (came,) = (
        P2PChannel(0, "device", torch.device("meta"), headers="hosts", tag=3).receive("a").wait()
    )
    assert came.shape == (2, 3) and came.device.type == "meta"


def test_the_peers_greeting_is_no_message(ends):
    wire, sender, receiver = ends
    sender.greet()
    receiver.await_greeting()
    assert not wire.queue and wire.waited == [0] and sender.bytes == 0
    sender.send([torch.ones(2)])
    assert receiver.receive().wait()[0].tolist() == [1, 1]


def test_while_a_message_is_awaited_the_time_is_that_of_others(ends, monkeypatch):
    """Whatever the file is called: the watchdog hears of it by the pulse."""
    waits = []
    theirs = _Work.wait
    monkeypatch.setattr(_Work, "wait", lambda work: (waits.append(PHASES.waits), theirs(work))[1])
    _, sender, receiver = ends
    sender.send([torch.ones(2, 3)])
    assert not PHASES.waits
    receiver.receive().wait()
    sender.drain()
    assert waits == [True] * 4  # header and tensor, at both ends
    assert not PHASES.waits
