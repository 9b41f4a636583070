"""Operations on tensors without memory, each computed once for all arguments of the same shapes.

torch finds the shapes of a result anew in every operation, mostly in Python: for a detector that
takes seconds. Here it takes microseconds, because a detector repeats few operations many times.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from yolods.compat import (
    as_if_on_cpu,
    fake_tensors,
    plain_attributes,
    storage_key,
)

_CPU, _META = torch.device("cpu"), torch.device("meta")
_DEVICE = torch.ops.prim.device.default


class Hollow(Tensor):
    """A tensor on the meta device that autograd and autocast take for one of a CPU."""

    __torch_function__ = plain_attributes()

    @property
    def device(self) -> torch.device:
        """That of a CPU; the storage's is meta."""
        return _CPU

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """See `run_hollow`."""
        return run_hollow(func, args, kwargs or {})


class HollowMode(TorchDispatchMode):
    """Within: tensors that would be on a CPU are hollow."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """See `run_hollow`."""
        return run_hollow(func, args, kwargs or {})


class MetaMode(TorchDispatchMode):
    """Within: operations on the meta device cost microseconds."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """See `run_on_meta`."""
        return run_on_meta(func, args, kwargs or {})


@dataclass(frozen=True, slots=True)
class _Result:
    """A tensor that an operation returns."""

    source: int | None
    """Whose storage it has: its place among the arguments' tensors and the results before it; None:
    one of its own."""
    same: bool
    """Whether it is that tensor, and not another one on its storage."""
    elements: int | None
    """Of its storage, if that is larger than the tensor needs."""
    hollow: bool
    """Whether it is `Hollow`."""
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def made(self, tensors: list[Tensor]) -> Tensor:
        """The tensor.

        Args:
            tensors: the arguments' tensors and the results before it.
        """
        if self.source is not None:
            if self.same:
                return tensors[self.source]
            empty = torch.empty(0, dtype=self.dtype, device=_META)
            storage = tensors[self.source].untyped_storage()
            meta = empty.set_(storage, self.offset, self.shape, self.stride)
        elif self.elements is None:
            meta = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=_META)
        else:
            whole = torch.empty(self.elements, dtype=self.dtype, device=_META)
            meta = whole.as_strided(self.shape, self.stride, self.offset)
        return as_if_on_cpu(Hollow, meta) if self.hollow else meta


_RESULTS: dict[tuple[object, ...], Any] = {}
"""By operation and arguments, with tensors as `_described`: the result, with a `_Result` in place
of each tensor."""


def run_hollow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on hollow tensors; so are its results."""
    if func is _DEVICE:
        return args[0].device
    tensors: list[Tensor] = []
    key = (func, _described(args, tensors), _described(tuple(kwargs.items()), tensors))
    found = _RESULTS.get(key)
    if found is None:
        found = _found(func, args, kwargs, fake_tensors())
        # The type of a result depends on more than the shape of a number that is a tensor.
        if all(type(each) is Hollow for each in tensors):
            _RESULTS[key] = found
    return _made(found, tensors)


def run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation as torch does; of one on the meta device the result may be known."""
    tensors: list[Tensor] = []
    key = (func, _described(args, tensors), _described(tuple(kwargs.items()), tensors))
    if not (all(each.is_meta for each in tensors) if tensors else kwargs.get("device") == _META):
        return func(*args, **kwargs)
    found = _RESULTS.get(key)
    if found is None:
        found = _RESULTS[key] = _found(func, args, kwargs, None)
    return _made(found, tensors)


def _made(found: Any, tensors: list[Tensor]) -> Any:
    """A result with its tensors, which are added to those of the arguments."""
    if type(found) is _Result:
        return found.made(tensors)
    if not isinstance(found, list | tuple):
        return found
    results = []
    for each in found:
        if type(each) is _Result:
            tensors.append(each.made(tensors))
            results.append(tensors[-1])
        else:
            results.append(each)
    return type(found)(results)


def _described(value: Any, tensors: list[Tensor]) -> object:
    """What of an argument decides an operation's results; collects the tensors."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return type(value), value.dtype, value.shape, value.stride(), value.storage_offset()
    if isinstance(value, list | tuple):
        return tuple([_described(each, tensors) for each in value])
    # 1, 1.0 and True are equal, but not to an operation.
    return type(value), value


def _found(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: Any) -> Any:
    """The result of an operation as torch finds it.

    Args:
        mode: torch's of fake tensors, for hollow ones; None: all are on meta.
    """
    tensors: list[Tensor] = []

    def stand_in(tensor: Tensor) -> Tensor:
        if type(tensor) is Hollow or tensor.is_meta:
            shape, stride, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
            whole = torch.empty(_extent(shape, stride, offset), dtype=tensor.dtype, device=_META)
            tensor = whole.as_strided(shape, stride, offset)
            if mode is not None:
                tensor = mode.fake_tensor_converter.from_meta_and_device(mode, tensor, _CPU)
        tensors.append(tensor)
        return tensor

    args, kwargs = tree_map_only(Tensor, stand_in, (args, kwargs))
    with mode or nullcontext():
        found = func(*args, **kwargs)
    if not isinstance(found, list | tuple):
        return _result(found, tensors)
    return type(found)([_result(each, tensors) for each in found])


def _result(value: Any, tensors: list[Tensor]) -> Any:
    """A tensor as a `_Result`, and added to the tensors; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    keys = [storage_key(each) for each in tensors]
    source = keys.index(storage_key(value)) if storage_key(value) in keys else None
    same = source is not None and value is tensors[source]
    tensors.append(value)
    shape, stride, offset = value.shape, value.stride(), value.storage_offset()
    elements = value.untyped_storage().nbytes() // value.element_size()
    tight = elements == _extent(shape, stride, 0)
    hollow = value.device == _CPU
    return _Result(
        source, same, None if tight else elements, hollow, value.dtype, shape, stride, offset
    )


def _extent(shape: torch.Size, stride: tuple[int, ...], offset: int) -> int:
    """Elements of the smallest storage for a tensor."""
    if 0 in shape:
        return offset
    return offset + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
