"""Channels that send named tensors to a neighbouring stage without waiting for it.

A small header announces the shapes before the first message of a kind (`key`); both sides remember
them. Evaluation, whose shapes vary, sends a header with each message. Headers travel between hosts:
on a device, the reader of a header would wait for all work that the device was given before.
Channels-last tensors travel as the dense (N, H, W, C) memory that they are, without a copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from yolods.distributed.phases import waiting

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
_HEADER = 64


@dataclass(frozen=True)
class _Form:
    """Shape, dtype and memory layout of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Form:
        # With one channel, or one pixel, a tensor is contiguous in both layouts and counts as
        # ordinary.
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(tensor.shape), tensor.dtype, last and not tensor.is_contiguous())

    def empty(self, device: torch.device) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.dtype, device=device, memory_format=layout)

    def dense(self, tensor: Tensor) -> Tensor:
        """A contiguous view of the tensor in this memory layout."""
        if self.channels_last:
            return tensor.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return tensor.contiguous()


@dataclass(frozen=True)
class Message:
    """Tensors in transit, in either direction; keeps their memory alive until they have arrived."""

    works: list[dist.Work]
    tensors: list[Tensor]

    def wait(self) -> list[Tensor]:
        """Wait for the transfer and return the tensors; on a device its stream waits, not the
        host."""
        with waiting():
            for work in self.works:
                work.wait()
        return self.tensors


class P2PChannel:
    """One direction over one boundary, on which this rank either sends or receives."""

    def __init__(
        self,
        peer: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
        *,
        headers: dist.ProcessGroup | None = None,
        tag: int = 0,
    ) -> None:
        """
        Args:
            peer: global rank at the other end.
            group: exactly these two ranks, used only in this direction; or a group on gloo.
            device: device of the tensors.
            headers: a group on gloo for the headers.
            tag: distinguishes this channel's messages in a group on gloo; NCCL ignores tags.
        """
        self._peer, self._group, self._device = peer, group, device
        self._headers, self._tag = headers, tag
        self._known: dict[Hashable, list[_Form]] = {}
        self._under_way: deque[Message] = deque()
        self.bytes = 0

    def greet(self) -> None:
        """Send a first token; the peer must call `await_greeting`. NCCL connects the two here."""
        with waiting():
            self._start([(torch.zeros(1, device=self._device), self._group)]).wait()

    def await_greeting(self) -> None:
        """Receive the token of the peer's `greet`."""
        with waiting():
            self._receive(torch.empty(1, device=self._device), self._group).wait()

    def send(self, tensors: Sequence[Tensor], key: Hashable | None = None) -> None:
        """Start to send, and return at once. All messages of one key have the same shapes.

        Keeps the tensors until `drain` releases them, because gloo and NCCL read them meanwhile.

        Args:
            key: kind of message; None: send a header along.
        """
        parts: list[tuple[Tensor, dist.ProcessGroup | None]] = []
        forms = self._known.get(key) if key is not None else None
        if forms is None:
            forms = [_Form.of(tensor) for tensor in tensors]
            parts.append((_pack(forms), self._headers))
            if key is not None:
                self._known[key] = forms
        parts += [
            (form.dense(tensor.detach()), self._group)
            for form, tensor in zip(forms, tensors, strict=True)
        ]
        self.bytes += sum(part.numel() * part.element_size() for part, _ in parts)
        # The message holds the dense tensors until they are sent: they may be copies.
        self._under_way.append(self._start(parts))

    def expect(self, forms: Sequence[Tensor], key: Hashable) -> None:
        """Declare the shapes of a key without a header. Both ends must call it.

        Gradients have the shapes of the activations that crossed in the other direction.
        """
        self._known[key] = [_Form.of(tensor) for tensor in forms]

    def receive(self, key: Hashable | None = None) -> Message:
        """Start to receive the next message; `Message.wait` returns its tensors.

        Waits for the header if the message has one.
        """
        forms = self._known.get(key) if key is not None else None
        if forms is None:
            header = torch.empty(_HEADER, dtype=torch.int64)
            with waiting():
                self._receive(header, self._headers).wait()
            forms = _unpack(header.tolist())
            if key is not None:
                self._known[key] = forms
        # Each tensor is received through its dense view, so that it arrives in its final layout.
        # Empty tensors are not sent.
        tensors = [form.empty(self._device) for form in forms]
        works = [
            self._receive(form.dense(tensor), self._group)
            for form, tensor in zip(forms, tensors, strict=True)
            if tensor.numel()
        ]
        return Message(works, tensors)

    def drain(self, leave: int = 0) -> None:
        """Release all but the newest `leave` messages, after they have been sent.

        The caller must know how many messages have arrived; then this waits for nothing. Asking
        does not work: gloo's `is_completed()` stays false until somebody has waited (torch 2.13),
        and to a host that runs ahead of its device nothing appears completed.
        """
        while len(self._under_way) > leave:
            self._under_way.popleft().wait()

    def _start(self, parts: Sequence[tuple[Tensor, dist.ProcessGroup | None]]) -> Message:
        full = [(part, group) for part, group in parts if part.numel()]
        works = [dist.isend(part, self._peer, group=group, tag=self._tag) for part, group in full]
        return Message(works, [part for part, _ in full])

    def _receive(self, dense: Tensor, group: dist.ProcessGroup | None) -> dist.Work:
        return dist.irecv(dense, self._peer, group=group, tag=self._tag)


def _pack(forms: Sequence[_Form]) -> Tensor:
    # Words: number of tensors; for each its dtype, channels-last flag, number of dimensions, shape.
    words = [len(forms)]
    for form in forms:
        words += [DTYPES.index(form.dtype), int(form.channels_last), len(form.shape), *form.shape]
    if len(words) > _HEADER:
        raise ValueError(
            f"{len(forms)} tensors cross a cut; a header of {_HEADER} words cannot hold their "
            "shapes"
        )
    return torch.tensor(words + [0] * (_HEADER - len(words)), dtype=torch.int64)


def _unpack(words: list[int]) -> list[_Form]:
    forms, place = [], 1
    for _ in range(words[0]):
        dtype, last, dims = words[place : place + 3]
        forms.append(_Form(tuple(words[place + 3 : place + 3 + dims]), DTYPES[dtype], bool(last)))
        place += 3 + dims
    return forms
