"""Copies between the host and the device, and which of them keep the host waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from tests.rehearsal.pretended.claims import claim, memory_of, on_device
from tests.rehearsal.pretended.world import World


def reason_to_wait(to_device: bool, pinned: bool, non_blocking: bool) -> str:
    """Why a copy keeps the host waiting; empty where it does not.

    Args:
        pinned: the host's side of it.
    """
    way = "copy to the device" if to_device else "copy to the host"
    if not non_blocking:
        return way
    return "" if pinned else f"{way}, whose memory on the host is not pinned"


def reason_between(target: Tensor, source: Tensor, non_blocking: bool) -> str:
    """The same for `target.copy_(source)`, also where no device or one alone has part in it."""
    to_device = on_device(target)
    if to_device == on_device(source):
        return ""
    return reason_to_wait(
        to_device, memory_of(source if to_device else target) == "pinned", non_blocking
    )


def moved(
    world: World, source: Tensor, to_device: bool, non_blocking: bool, copy: Callable[[], Tensor]
) -> Tensor:
    """What `copy` makes of `source`, in the device's memory or the host's.

    On the host it is pinned where it is not waited for, as CUDA's is: whoever reads it has to wait.
    """
    here, pinned = on_device(source), memory_of(source) == "pinned"
    with copying(world):
        made = copy()
    if not to_device and not here:
        return made
    if to_device or non_blocking:
        claim(made, "device" if to_device else "pinned", world.ledger)
    world.record.kernels += 1
    world.races.use("copy", world.stream, [source], [made])
    reason = (
        reason_to_wait(to_device, pinned or not to_device, non_blocking)
        if to_device != here
        else ""
    )
    if reason:
        world.streams.host_waits(reason)
    return made


@contextmanager
def copying(world: World) -> Iterator[None]:
    """Within, operations are none of the program's: nothing is noted of them, and no claim
    spreads."""
    before, world.copying = world.copying, True
    try:
        yield
    finally:
        world.copying = before
