"""What a function moves, launches and waits for on a GPU, counted without one.

The very functions that run are called on tensors of the meta device, which have a shape and a dtype
and no memory. A mode in torch's dispatcher sees every operator with its tensors; another one sees
numbers that are made into tensors there, which never reach the dispatcher. Nothing is computed:
where the host asks for a value it is told 0 (nothing has overflown), and what it copies to itself
is full of ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.clipping_report import Tally

DEVICE = torch.device("meta")
"""Stands for a GPU."""
CHUNK, BLOCKS, TENSORS = 65536, 320, 110
"""Of a launch of torch's foreach kernels: elements a block, blocks and tensors. Source: torch 2.13,
ATen/native/cuda/MultiTensorApply.cuh, built for CUDA 12; for CUDA 13 there are 2240 blocks and 770
tensors."""

aten = torch.ops.aten
_ANSWER = aten._local_scalar_dense.default
_WRITE_ONLY = (aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default)
_EMPTY = (
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default),
    *(aten.new_empty.default, aten.new_empty_strided.default),
)
_INSIDE: dict[Any, Callable[..., Tensor]] = {
    # One operator to the dispatcher, two with a whole tensor between them to the device:
    # ATen/native/TensorCompare.cpp.
    aten.isinf.default: lambda values: values.abs() == float("inf"),
}


class Counter(TorchDispatchMode):
    """Adds up every operator that meets a tensor on `DEVICE` while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _INSIDE:
            with self:
                return _INSIDE[func](*args, **named)
        given = _tensors((args, named))
        if not given and torch.device(named.get("device") or "cpu") != DEVICE:
            return func(*args, **named)
        if func is _ANSWER:
            self.tally.waits += 1
            self._launched(func, 1, given, [])
            return 0
        if given and torch.device(named.get("device") or DEVICE) != DEVICE:
            self.tally.waits += not named.get("non_blocking", False)
            self._launched(func, 1, given, [])
            return torch.ones(given[0].shape, dtype=named.get("dtype") or given[0].dtype)
        result = func(*args, **named)
        if not func.is_view and func not in _EMPTY:
            self._note(func, args, named, given, result)
        return result

    def _note(
        self,
        func: Any,
        args: Sequence[Any],
        named: dict[str, Any],
        given: list[Tensor],
        result: Any,
    ) -> None:
        schema = func._schema
        values = [*args, *(named.get(argument.name) for argument in schema.arguments[len(args) :])]
        changed = _tensors(
            [
                value
                for argument, value in zip(schema.arguments, values, strict=True)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
        )
        told = result if isinstance(result, tuple) and len(schema.returns) > 1 else (result,)
        fresh = _tensors(
            [
                each
                for each, kind in zip(told, schema.returns, strict=False)
                if kind.alias_info is None
            ]
        )
        if func in _WRITE_ONLY:
            given = [each for each in given if all(each is not other for other in changed)]
        self._launched(func, _launches(func, args), given, [*changed, *fresh])
        self.tally.made += sum(map(_size, fresh))

    def _launched(
        self, func: Any, launches: int, read: list[Tensor], written: list[Tensor]
    ) -> None:
        tally, name = self.tally, str(func)
        tally.read += sum(map(_size, read))
        tally.written += sum(map(_size, written))
        tally.operators += 1
        tally.launches += launches
        tally.by_operator[name] = tally.by_operator.get(name, 0) + 1


class _Constants(TorchFunctionMode):
    """Counts numbers of the host that are made into tensors on the device, for which CUDA waits."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if (
            func in (torch.tensor, torch.as_tensor)
            and torch.device(named.get("device") or "cpu") == DEVICE
        ):
            self._tally.sent += 1
        return func(*args, **named)


def counted(function: Callable[[], object]) -> Tally:
    """What a function does with tensors on `DEVICE`."""
    counter = Counter()
    with _foreach_everywhere(), counter, _Constants(counter.tally), lone_rank(counter.tally):
        function()
    return counter.tally


@contextmanager
def lone_rank(tally: Tally | None = None) -> Iterator[None]:
    """Within: the all-reduces of torch and of DeepSpeed do nothing, as with one rank, and are
    counted."""
    import deepspeed

    def all_reduce(*arguments: object, **named: object) -> None:
        if tally is not None:
            tally.collectives += 1

    ours, stock = (
        mock.patch.object(where, "all_reduce", all_reduce)
        for where in (torch.distributed, deepspeed.comm)
    )
    with ours, stock:
        yield


@contextmanager
def _foreach_everywhere() -> Iterator[None]:
    """Within: `clip_grad_norm_` takes its foreach way on `DEVICE` as on a GPU, of which it asks by
    name."""
    module = "torch.nn.utils.clip_grad._device_has_foreach_support"
    with mock.patch(module, lambda device: True):
        yield


def multi_tensor_launches(counts: Sequence[int]) -> int:
    """How many kernels a foreach operator starts on tensors of these numbers of elements."""
    launches = blocks = tensors = 0
    for count in counts:
        chunks = -(-count // CHUNK)
        tensors += 1
        while chunks:
            taken = min(chunks, BLOCKS - blocks)
            blocks, chunks = blocks + taken, chunks - taken
            if blocks == BLOCKS:
                launches, blocks, tensors = launches + 1, 0, int(chunks > 0)
        if tensors == TENSORS:
            launches, blocks, tensors = launches + bool(blocks), 0, 0
    return launches + bool(blocks)


def _launches(func: Any, args: Sequence[Any]) -> int:
    if not func._schema.name.startswith("aten::_foreach"):
        return 1
    counts = [each.numel() for each in args[0]]
    # A norm's chunks are brought together by another kernel.
    together = -(-len(counts) // TENSORS) if func._schema.name == "aten::_foreach_norm" else 0
    return multi_tensor_launches(counts) + together


def _tensors(values: Any) -> list[Tensor]:
    """Tensors on `DEVICE`, each once: what an operator reads twice comes from a cache the second
    time."""
    leaves = [
        each for each in tree_leaves(values) if isinstance(each, Tensor) and each.device == DEVICE
    ]
    return list({id(each): each for each in leaves}.values())


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
