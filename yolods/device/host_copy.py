"""Copies between a device and the host, all in flight at once.

The host waits once for all copies that come to it, and for no copy that goes to a device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from yolods.device.stored import Stored

Place = tuple[Any, ...]
"""Keys and indices that lead to a tensor in nested dictionaries and lists."""


@torch.no_grad()
def on_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in host memory; those already there are returned unchanged."""
    # A non-blocking copy to the CPU goes into pinned memory, so it does not block the host.
    found = tuple(tensor.detach().to("cpu", non_blocking=True) for tensor in tensors)
    _wait_for(tensors)
    return found


@torch.no_grad()
def host_copy(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tensors in new host memory; tuples become lists.

    Stored tensors are read.
    """
    sources: list[Tensor] = []

    def copy(value: Tensor | Stored, _: Place) -> Tensor:
        if isinstance(value, Stored):
            return value.read()
        sources.append(value)
        return value.detach().to("cpu", non_blocking=True, copy=True)

    copied = _walk(state, copy, ())
    _wait_for(sources)
    return copied


@torch.no_grad()
def fill(targets: Iterable[Tensor], sources: Iterable[Tensor | Stored]) -> None:
    """Copy tensors, in memory or stored, into others of the same shapes.

    A source on the host may be overwritten as soon as this returns, unless it is pinned. The call
    does not wait for copies to a device.
    """
    for target, source in zip(targets, sources, strict=True):
        if isinstance(source, Stored):
            source.write_to(target)
            continue
        target.copy_(_pinned(source) if target.is_cuda else source, non_blocking=target.is_cuda)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device` (itself if it is there), without waiting for the copy."""
    if tensor.is_cuda or device.type != "cuda":
        return tensor
    return _pinned(tensor).to(device, non_blocking=True)


class HostCopy:
    """A copy of a state in host memory that keeps its buffers for the next copy."""

    def __init__(self, *, leave: Collection[str] = ()) -> None:
        """
        Args:
            leave: keys of the state whose values nobody modifies; they are passed on without a
                copy.
        """
        self._leave = leave
        self._buffers: dict[Place, Tensor] = {}

    @torch.no_grad()
    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy a state, overwriting the previous copy."""
        sources: list[Tensor] = []

        def copy(value: Tensor, place: Place) -> Tensor:
            sources.append(value)
            return self._buffer(value, place).copy_(value, non_blocking=True)

        copied = {
            key: value if key in self._leave else _walk(value, copy, (key,))
            for key, value in state.items()
        }
        _wait_for(sources)
        return copied

    def _buffer(self, value: Tensor, place: Place) -> Tensor:
        held = self._buffers.get(place)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            # Pinned: a device copies to it at full speed, while the host continues.
            held = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[place] = held
        return held


def _walk(value: Any, copy: Callable[[Any, Place], Tensor], place: Place) -> Any:
    if isinstance(value, Tensor | Stored):
        return copy(value, place)
    if isinstance(value, Mapping):
        return {key: _walk(each, copy, (*place, key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(each, copy, (*place, number)) for number, each in enumerate(value)]
    return value


def _pinned(source: Tensor) -> Tensor:
    """The tensor where a device can read it while the host continues: pinned, or on the device.

    torch does not reuse pinned memory before the copies from it are complete.
    """
    return source if source.is_cuda else source.pin_memory()


def _wait_for(sources: Collection[Tensor]) -> None:
    if any(source.is_cuda for source in sources):
        torch.cuda.current_stream().synchronize()
