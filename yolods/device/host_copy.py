"""Between a device's memory and the host's: all copies are under way at once. The host waits once for all that come to
it, and for none that goes to a device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Place = tuple[Any, ...]
"""Keys and numbers that lead to a tensor in nested dictionaries and lists."""


@torch.no_grad()
def on_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in host memory; those that are there already are returned as they are."""
    found = tuple(tensor.detach().to("cpu", non_blocking=True) for tensor in tensors)  # into pinned memory
    _wait_for(tensors)
    return found


@torch.no_grad()
def host_copy(state: Any) -> Any:
    """Nested dictionaries, lists and tensors once more, in host memory of their own; tuples become lists."""
    sources: list[Tensor] = []

    def copy(value: Tensor, _: Place) -> Tensor:
        sources.append(value)
        return value.detach().to("cpu", non_blocking=True, copy=True)

    copied = _walk(state, copy, ())
    _wait_for(sources)
    return copied


@torch.no_grad()
def fill(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Give tensors the values of others of their shapes. What is on the host may be written over as soon as this
    returns, unless it is pinned; nothing has waited for it to reach a device."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(_pinned(source) if target.is_cuda else source, non_blocking=target.is_cuda)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; nothing has waited for it to get there. Itself where it is there already."""
    if tensor.is_cuda or device.type != "cuda":
        return tensor
    return _pinned(tensor).to(device, non_blocking=True)


class HostCopy:
    """A copy of a state in host memory, which is kept for the next one."""

    def __init__(self, *, leave: Collection[str] = ()) -> None:
        """
        Args:
            leave: keys of the state whose values nobody writes into: they are handed on as they are.
        """
        self._leave = leave
        self._buffers: dict[Place, Tensor] = {}

    @torch.no_grad()
    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy a state; what was returned before is written over."""
        sources: list[Tensor] = []

        def copy(value: Tensor, place: Place) -> Tensor:
            sources.append(value)
            return self._buffer(value, place).copy_(value, non_blocking=True)

        copied = {key: value if key in self._leave else _walk(value, copy, (key,)) for key, value in state.items()}
        _wait_for(sources)
        return copied

    def _buffer(self, value: Tensor, place: Place) -> Tensor:
        held = self._buffers.get(place)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            # A device copies to pinned memory at full speed, and while the host goes on.
            held = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[place] = held
        return held


def _walk(value: Any, copy: Callable[[Tensor, Place], Tensor], place: Place) -> Any:
    if isinstance(value, Tensor):
        return copy(value, place)
    if isinstance(value, Mapping):
        return {key: _walk(each, copy, (*place, key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(each, copy, (*place, number)) for number, each in enumerate(value)]
    return value


def _pinned(source: Tensor) -> Tensor:
    """As a device reads it while the host goes on. torch gives pinned memory to nobody else before a copy is done."""
    return source if source.is_cuda else source.pin_memory()


def _wait_for(sources: Collection[Tensor]) -> None:
    if any(source.is_cuda for source in sources):
        torch.cuda.current_stream().synchronize()
