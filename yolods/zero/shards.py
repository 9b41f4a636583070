"""Where whole named tensors are in the shards of any layout.

This lets a checkpoint resume under another layout.

These are pure functions of tensors, and of names with shapes. A layout divides a list of groups,
each a list of parameters, into one shard per group and rank; `master_weights.Kind` describes the
ways to do so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolods.device.host_copy import fill

Group = Sequence[tuple[str, Sequence[int]]]
"""Names and shapes of the parameters in a shard, in order."""


@dataclass(frozen=True)
class Span:
    """Where one parameter's part is in a shard."""

    name: str
    """Name of the parameter."""
    start: int
    """Index of the part's first element in the shard."""
    count: int
    """Number of elements, without padding."""
    first: int
    """Index of the part's first element in the flattened parameter."""


@dataclass(frozen=True)
class ShardPart:
    """Where a part of a parameter is among the shards of all ranks."""

    rank: int
    """Data-parallel rank."""
    shard: int
    """Index of the shard among those of this rank."""
    start: int
    """Index of the part's first element in the shard."""
    count: int
    """Number of elements, without padding."""


def misfits(groups: Sequence[Group], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """One line per parameter that `shapes` lacks or has in another shape.

    A parameter of a wrong size would shift all later ones in its shard.
    """
    lines = []
    for name, shape in (member for group in groups for member in group):
        if name not in shapes:
            lines.append(f"{name} {tuple(shape)} is missing")
        elif tuple(shapes[name]) != tuple(shape):
            lines.append(_misfit(name, shapes[name], shape))
    return lines


def _misfit(name: str, found: Sequence[int], shape: Sequence[int]) -> str:
    return f"{name} is {tuple(found)} instead of {tuple(shape)}"


def _check_room(kind: str, group: Group, size: int, count: int) -> None:
    """Check that `count` shards of `size` hold the whole group; only padding may remain."""
    numels = [math.prod(shape) for _, shape in group]
    total = sum(numels)
    needed = sum(math.ceil(numel / count) for numel in numels) if kind == "pieces" else total
    room = size * count if kind == "flat" else size
    if room < needed or (kind == "whole" and room != needed):
        held = f"{count} x {size}" if kind == "flat" else size
        raise ValueError(
            f"the shards that start with {group[0][0]} hold {held} elements, but need {needed}"
        )


def spans(
    kind: str, groups: Sequence[Group], sizes: Sequence[int], index: int, count: int
) -> list[list[Span]]:
    """The parts of parameters in each of this rank's shards, in order.

    Parameters without a part are omitted.

    Args:
        sizes: elements of each of this rank's shards, padding included.
        index: data-parallel rank.
        count: data-parallel world size.
    """
    found = []
    for group, size in zip(groups, sizes, strict=True):
        # In a flat layout, this rank's shard starts `index * size` elements into the group.
        first, start, parts = (index * size if kind == "flat" else 0), 0, []
        for name, shape in group:
            numel = math.prod(shape)
            if kind == "pieces":
                piece = math.ceil(numel / count)
                room = max(numel - index * piece, 0)
                parts.append(Span(name, start, min(piece, room), index * piece))
                start += piece
            else:
                begin, end = max(start, first), min(start + numel, first + size)
                parts.append(Span(name, begin - first, end - begin, begin - start))
                start += numel
        found.append([part for part in parts if part.count > 0])
    return found


def locate(
    kind: str, groups: Sequence[Group], sizes: Sequence[int], count: int
) -> dict[str, list[ShardPart]]:
    """Where every parameter is: its parts, in order, without padding.

    Args:
        sizes: elements of each shard of a rank, padding included.
        count: data-parallel world size.

    Raises:
        ValueError: a shard is too small for its contents.
    """
    for group, size in zip(groups, sizes, strict=True):
        _check_room(kind, group, size, count)
    found: dict[str, list[ShardPart]] = {name: [] for group in groups for name, _ in group}
    # In a whole layout every rank holds the same.
    for rank in range(1 if kind == "whole" else count):
        for shard, parts in enumerate(spans(kind, groups, sizes, rank, count)):
            for part in parts:
                found[part.name].append(ShardPart(rank, shard, part.start, part.count))
    return found


@torch.no_grad()
def fill_shard(
    kind: str, group: Group, shard: Tensor, leaf: Callable[[str], Tensor], index: int, count: int
) -> None:
    """Write this rank's parts of whole parameters into its shard, one parameter after the other.

    Args:
        shard: its padding becomes 0.
        leaf: returns a parameter's whole value; called once for each that has a part here.
        index: data-parallel rank.
        count: data-parallel world size.

    Raises:
        ValueError: a value has another shape than its group states, or the shard is too small for
            its contents.
    """
    _check_room(kind, group, shard.numel(), count)
    shapes = {name: tuple(shape) for name, shape in group}
    (parts,) = spans(kind, [group], [shard.numel()], index, count)
    if sum(part.count for part in parts) < shard.numel():
        shard.zero_()
    for part in parts:
        value = leaf(part.name)
        if tuple(value.shape) != shapes[part.name]:
            raise ValueError(_misfit(part.name, value.shape, shapes[part.name]))
        if kind == "whole":
            # Perhaps in another memory format, so not by flat indices.
            fill([shard], [value.view_as(shard)])
        else:
            here = value.reshape(-1)[part.first : part.first + part.count]
            fill([shard[part.start : part.start + part.count]], [here])
