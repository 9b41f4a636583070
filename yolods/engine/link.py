"""What crosses a cut: named tensors, sent to the neighbouring stage without waiting for it.

Shapes are told ahead in a small header the first time a message of a kind is sent (`key`), and remembered on both
sides; evaluation, whose shapes vary, sends one each time. Channels-last tensors travel as the dense (N, H, W, C)
memory they are; nothing is copied for the journey.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from yolods.cluster.pulse import waiting

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
_HEADER = 64


@dataclass(frozen=True)
class _Form:
    """Shape and memory of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Form:
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(tensor.shape), tensor.dtype, last and not tensor.is_contiguous())

    def empty(self, device: torch.device) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(self.shape, dtype=self.dtype, device=device, memory_format=layout)

    def dense(self, tensor: Tensor) -> Tensor:
        """The tensor in this memory layout, as a contiguous view of it."""
        if self.channels_last:
            return tensor.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return tensor.contiguous()


class Link:
    """One direction over one boundary: this rank sends on it, or receives from it."""

    def __init__(self, peer: int, group: dist.ProcessGroup, device: torch.device) -> None:
        """
        Args:
            peer: global rank at the other end.
            group: of exactly these two ranks, used in this direction alone.
        """
        self._peer, self._group, self._device = peer, group, device
        self._known: dict[Hashable, list[_Form]] = {}
        self._sending: list[tuple[dist.Work, Tensor]] = []
        self.bytes = 0

    def send(self, tensors: Sequence[Tensor], key: Hashable | None = None) -> None:
        """Start sending; returns at once. Messages of one key have equal shapes; None: the header goes along."""
        forms = self._known.get(key) if key is not None else None
        if forms is None:
            forms = [_Form.of(tensor) for tensor in tensors]
            self._start(_pack(forms).to(self._device))
            if key is not None:
                self._known[key] = forms
        for form, tensor in zip(forms, tensors, strict=True):
            self._start(form.dense(tensor.detach()))

    def expect(self, forms: Sequence[Tensor], key: Hashable) -> None:
        """Messages of `key` have these forms, at both ends: gradients have those of what came the other way."""
        self._known[key] = [_Form.of(tensor) for tensor in forms]

    def receive(self, key: Hashable | None = None) -> Receipt:
        """Start receiving the next message; `Receipt.wait` gives its tensors."""
        forms = self._known.get(key) if key is not None else None
        if forms is None:
            header = torch.empty(_HEADER, dtype=torch.int64, device=self._device)
            with waiting():
                self._wait(dist.irecv(header, self._peer, group=self._group))
                words = header.tolist()  # under NCCL it is here that the header is waited for
            forms = _unpack(words)
            if key is not None:
                self._known[key] = forms
        tensors = [form.empty(self._device) for form in forms]
        works = [
            dist.irecv(form.dense(tensor), self._peer, group=self._group)
            for form, tensor in zip(forms, tensors, strict=True)
            if tensor.numel()
        ]
        return Receipt(works, tensors)

    def drain(self, leave: int = 0) -> None:
        """Wait until all but the newest `leave` tensors have been sent."""
        while len(self._sending) > leave:
            work, _ = self._sending.pop(0)
            with waiting():
                work.wait()

    def _start(self, dense: Tensor) -> None:
        if dense.numel():
            self.bytes += dense.numel() * dense.element_size()
            # The tensor is held until it has been sent: gloo and NCCL read it while we go on.
            self._sending.append((dist.isend(dense, self._peer, group=self._group), dense))

    @staticmethod
    def _wait(work: dist.Work | None) -> None:
        if work is not None:
            work.wait()


@dataclass(frozen=True)
class Receipt:
    """A message under way."""

    works: list[dist.Work]
    tensors: list[Tensor]

    def wait(self) -> list[Tensor]:
        """The tensors, once they have arrived."""
        with waiting():
            for work in self.works:
                work.wait()
        return self.tensors


def _pack(forms: Sequence[_Form]) -> Tensor:
    words = [len(forms)]
    for form in forms:
        words += [DTYPES.index(form.dtype), int(form.channels_last), len(form.shape), *form.shape]
    if len(words) > _HEADER:
        raise ValueError(f"{len(forms)} tensors cross a cut; a header of {_HEADER} words cannot tell their shapes")
    return torch.tensor(words + [0] * (_HEADER - len(words)), dtype=torch.int64)


def _unpack(words: list[int]) -> list[_Form]:
    forms, place = [], 1
    for _ in range(words[0]):
        dtype, last, dims = words[place : place + 3]
        forms.append(_Form(tuple(words[place + 3 : place + 3 + dims]), DTYPES[dtype], bool(last)))
        place += 3 + dims
    return forms
