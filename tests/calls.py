"""Records every tensor that a process hands to torch.distributed, whoever calls it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

RECORDED = {
    "all_reduce": 0,
    "reduce": 0,
    "broadcast": 0,
    "all_gather_into_tensor": 1,
    "all_gather": 1,
    "reduce_scatter_tensor": 1,
    "reduce_scatter": 1,
    "isend": 0,
    "send": 0,
    "gather": 0,
    "all_to_all_single": 1,
    "exchange": 1,
}
"""Function of torch.distributed, or yolods' own -> position of the tensor that a rank puts in."""


NAMES = ("tensor", "input_tensor", "input", "input_list")
"""Names of that tensor, if it is passed by name."""


@dataclass(frozen=True)
class Call:
    """One call."""

    operation: str
    elements: int
    """Of the tensor that this rank puts in."""
    size: int
    """Bytes of one element."""
    ranks: int
    """Of the group."""


@dataclass
class Calls:
    """The calls of this process since the last `take`."""

    made: list[Call] = field(default_factory=list)

    def take(self) -> list[Call]:
        """The calls so far, which are forgotten."""
        made, self.made = self.made, []
        return made


@contextmanager
def recorded() -> Iterator[Calls]:
    """Record from here on; entered before the ranks join, because DeepSpeed's backend keeps
    references to some of the functions."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    from yolods.zero import owned_reduction

    calls, inside = Calls(), threading.local()
    places = {name: (dist, distributed_c10d) for name in RECORDED} | {
        "exchange": (owned_reduction,)
    }
    originals = {name: getattr(places[name][0], name) for name in RECORDED}
    for name, place in RECORDED.items():
        wrapper = _recording(originals[name], name, place, calls, inside)
        for module in places[name]:
            setattr(module, name, wrapper)
    yield calls
    for name, function in originals.items():
        for module in places[name]:
            setattr(module, name, function)


def _recording(
    function: Callable[..., Any], name: str, place: int, calls: Calls, inside: threading.local
) -> Callable[..., Any]:
    import torch.distributed as dist

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        # One function of torch.distributed may call another.
        outermost = not getattr(inside, "call", False)
        if outermost:
            group = named.get("group", arguments[-1] if name == "exchange" else None)
            # The tensor may be given by any name, but it is the only one beside an output.
            named_tensor = next((named[key] for key in NAMES if key in named), None)
            tensor = arguments[place] if len(arguments) > place else named_tensor
            tensors = tensor if isinstance(tensor, list) else [tensor]
            elements = sum(each.numel() for each in tensors)
            calls.made.append(
                Call(name, elements, tensors[0].element_size(), dist.get_world_size(group))
            )
        inside.call = True
        try:
            return function(*arguments, **named)
        finally:
            inside.call = not outermost

    return call
