"""What reaches torch's dispatcher: claims spread from what an operation reads to what it makes,
waits and mix-ups are noted, and every use of memory is told to `races`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rehearsal.pretended.claims import claim, memory_of, on_device, tensors_in
from tests.rehearsal.pretended.collectives import Collectives
from tests.rehearsal.pretended.copies import moved, reason_between
from tests.rehearsal.pretended.streams import HOST
from tests.rehearsal.pretended.world import World

_WAITING = {
    *("nonzero", "_local_scalar_dense", "masked_select", "equal", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}
"""Operations whose CUDA kernels tell the host how many there are, or which: torch 2.13,
aten/src/ATen/native/cuda."""
_UNTOUCHED = {
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
    "_reshape_alias",
    "set_",
    "record_stream",
    "resize_",
}
"""Beside views: these read and write no values."""
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Memory is taken, and nothing written."""
_TAKES_BOTH = {
    "copy_",
    "_foreach_copy_",
    "_to_copy",
    "index",
    "index_put_",
    "_index_put_impl_",
    "index_put",
}
"""Operations that CUDA accepts with tensors of the host among those of the device."""
_ALL_ALIKE = {"cat", "stack", "_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"}
"""Operations that refuse even a single number on the host."""


@dataclass(frozen=True)
class Traits:
    """What can be said about an operation once and for all."""

    name: str
    untouched: bool
    """It moves no values."""
    written: tuple[tuple[int, str], ...]
    """Place and name of the arguments that it writes."""


@cache
def _traits(func: Any) -> Traits:
    name = func._schema.name.split("::")[-1]
    aliases = [(at, each.name, each.alias_info) for at, each in enumerate(func._schema.arguments)]
    written = tuple(
        (at, argument) for at, argument, alias in aliases if alias is not None and alias.is_write
    )
    return Traits(name, func.is_view or name in _UNTOUCHED, written)


class Kernels(TorchDispatchMode):
    """Every operation under autograd, forward and backward."""

    def __init__(self, world: World, collectives: Collectives) -> None:
        super().__init__()
        self._world, self._record, self._collectives = world, world.record, collectives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        traits = _traits(func)
        if traits.untouched or self._world.copying:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if func.namespace == "c10d":
                return self._collectives.launch(func, args, kwargs)
            if "device" in kwargs or kwargs.get("pin_memory"):
                return self._make(func, traits, args, kwargs)
            given = [*tensors_in(args), *tensors_in(kwargs.values())]
            memories = [memory_of(tensor) for tensor in given]
            if "device" in memories:
                return self._launch(func, traits, args, kwargs, given, memories)
            made = func(*args, **kwargs)
            if traits.name == "_pin_memory":
                made = claim(made.clone(), "pinned", self._world.ledger)
            if "pinned" in memories:
                self._world.races.use(traits.name, HOST, *_split(given, traits, args, kwargs))
            return made

    def _make(self, func: Any, traits: Traits, args: Any, kwargs: dict[str, Any]) -> Any:
        """A factory, or a copy, that says where its tensor is to be."""
        target, source = kwargs.get("device"), next(tensors_in(args), None)
        pinned = bool(kwargs.get("pin_memory"))
        to_device = target is not None and torch.device(target).type == "cuda"
        # Python's functions have said where (functions.py); C++ takes over options, in which the
        # device is the CPU.
        held = source is not None and on_device(source)
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if to_device:
            kwargs["device"] = torch.device("cpu")
        if traits.name == "_to_copy":
            non_blocking = kwargs.get("non_blocking", False)
            return moved(
                self._world, source, to_device or held, non_blocking, lambda: func(*args, **kwargs)
            )
        made = func(*args, **kwargs)
        if to_device or held:
            claim(made, "device", self._world.ledger)
            self._record.kernels += 1
            if traits.name not in _EMPTY:
                self._world.races.use(traits.name, self._world.stream, [], [made])
        elif pinned:
            claim(made, "pinned", self._world.ledger)
        return made

    def _launch(
        self,
        func: Any,
        traits: Traits,
        args: Any,
        kwargs: dict[str, Any],
        given: list[Tensor],
        memories: list[Any],
    ) -> Any:
        """An operation of which some tensors are on the device."""
        self._record.kernels += 1
        self._note_mixup(traits.name, given, memories)
        waits = _reasons_to_wait(traits.name, args, kwargs)
        made = func(*args, **kwargs)
        read, written = _split(given, traits, args, kwargs)
        new = [
            tensor
            for tensor in tensors_in((made,))
            if memory_of(tensor) is None and not _is_one_of(tensor, given)
        ]
        for tensor in new:
            if traits.name != "_local_scalar_dense":
                claim(tensor, "device", self._world.ledger)
        self._world.races.use(traits.name, self._world.stream, read, [*written, *new])
        for reason in waits:
            self._world.streams.host_waits(reason)
        return made

    def _note_mixup(self, name: str, given: list[Tensor], memories: list[Any]) -> None:
        if name in _TAKES_BOTH:
            return
        least = -1 if name in _ALL_ALIKE else 0
        alien = [
            t
            for t, memory in zip(given, memories, strict=True)
            if memory != "device" and t.dim() > least
        ]
        if alien:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in alien[:3])
            self._record.mixup(f"{name} of the device's tensors and the host's {shapes}")


def _split(
    given: list[Tensor], traits: Traits, args: Any, kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """What an operation reads, and what it writes."""
    if not traits.written:
        return given, []
    values = [args[at] if at < len(args) else kwargs.get(name) for at, name in traits.written]
    written = list(tensors_in(values))
    read = [tensor for tensor in given if not any(tensor is each for each in written)]
    return read, written


def _is_one_of(tensor: Tensor, given: list[Tensor]) -> bool:
    address = tensor.untyped_storage()._cdata
    return any(each.untyped_storage()._cdata == address for each in given)


def _reasons_to_wait(name: str, args: Any, kwargs: dict[str, Any]) -> list[str]:
    """One for each time that the host waits for the device."""
    if name in _WAITING:
        return [name.strip("_").replace("local_scalar_dense", "item")]
    if name == "repeat_interleave":
        return (
            []
            if kwargs.get("output_size") is not None
            else ["repeat_interleave without its output_size"]
        )
    if name in ("copy_", "_foreach_copy_"):
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        pairs = [(args[0], args[1])] if name == "copy_" else zip(args[0], args[1], strict=True)
        return [reason for pair in pairs if (reason := reason_between(*pair, non_blocking))]
    if name in ("index", "index_put_", "_index_put_impl_", "index_put"):
        return _reasons_of_index(name, args)
    return []


def _reasons_of_index(name: str, args: Any) -> list[str]:
    """Masks are turned into places, of which the host has to know the number; places on the host
    are copied."""
    target, places = args[0], [each for each in args[1] if each is not None]
    if not on_device(target):
        return []
    masks = [each for each in places if each.dtype in (torch.bool, torch.uint8)]
    if (
        name != "index"
        and masks
        and len(places) == 1
        and args[2].numel() == 1
        and not on_device(args[2])
    ):
        return []  # one number into what a mask selects: masked_fill
    reasons = ["index by a mask"] * len(masks)
    return reasons + ["index by places on the host" for each in places if not on_device(each)]
