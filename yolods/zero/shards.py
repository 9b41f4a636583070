"""Converts shards of any layout to whole named tensors and back.

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
class Place:
    """Where a part of a parameter is among the shards of all ranks."""

    rank: int
    """Data-parallel rank."""
    shard: int
    """Index of the shard among those of this rank."""
    start: int
    """Index of the part's first element in the shard."""
    count: int
    """Number of elements, without padding."""


def join_shards(
    kind: str, groups: Sequence[Group], ranks: Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Join shards into whole tensors.

    Args:
        kind: `whole`, `flat` or `pieces`.
        groups: contents of each shard.
        ranks: the shards of every data-parallel rank, one per group.

    Returns:
        every whole parameter, by name.

    Raises:
        ValueError: a shard is too small for its contents.
    """
    whole: dict[str, Tensor] = {}
    for place, group in enumerate(groups):
        shards = [shards[place].flatten() for shards in ranks]
        for shard in shards:
            _check_room(kind, group, shard.numel(), len(ranks))
        whole |= (
            _join_pieces(shards, group) if kind == "pieces" else _split(_flat(kind, shards), group)
        )
    return whole


def _flat(kind: str, shards: list[Tensor]) -> Tensor:
    # In a whole layout every rank holds the same; in a flat one the ranks' parts are consecutive.
    return shards[0] if kind == "whole" else torch.cat(shards)


def _split(flat: Tensor, group: Group) -> dict[str, Tensor]:
    """Cut parameters from a flat tensor; the end may be padding."""
    whole, start = {}, 0
    for name, shape in group:
        count = math.prod(shape)
        # Cloned, because a saved view would take the whole flat tensor into the file.
        whole[name] = flat[start : start + count].view(tuple(shape)).clone()
        start += count
    return whole


def _join_pieces(shards: list[Tensor], group: Group) -> dict[str, Tensor]:
    whole, start = {}, 0
    for name, shape in group:
        count = math.prod(shape)
        # All ranks hold pieces of equal size, so the last one may end in padding.
        piece = math.ceil(count / len(shards))
        whole[name] = (
            torch.cat([shard[start : start + piece] for shard in shards])[:count]
            .view(tuple(shape))
            .clone()
        )
        start += piece
    return whole


def cut_shards(
    kind: str,
    groups: Sequence[Group],
    whole: Mapping[str, Tensor],
    sizes: Sequence[int],
    index: int,
    count: int,
) -> list[Tensor]:
    """Cut this rank's shards from whole tensors; inverse of `join_shards`.

    Args:
        sizes: elements of each of this rank's shards, padding included.
        index: data-parallel rank.
        count: data-parallel world size.

    Returns:
        flat tensors, one per group, padded with 0.

    Raises:
        ValueError: a tensor has another shape than its group states, or a shard is too small for
            its contents.
    """
    if wrong := misfits(groups, whole):
        raise ValueError("; ".join(wrong))
    shards = []
    for group, size in zip(groups, sizes, strict=True):
        _check_room(kind, group, size, count)
        parts = [whole[name].flatten() for name, _ in group]
        if kind == "pieces":
            shard = torch.cat([_piece(part, index, count) for part in parts])
        elif kind == "flat":
            shard = _window(torch.cat(parts), index * size, size)
        else:
            shard = torch.cat(parts)
        shards.append(_window(shard, 0, size))
    return shards


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


def _piece(tensor: Tensor, index: int, count: int) -> Tensor:
    piece = math.ceil(tensor.numel() / count)
    return _window(tensor, index * piece, piece)


def _window(tensor: Tensor, start: int, size: int) -> Tensor:
    """`size` elements from `start` on, filled up with zeros at the end."""
    window = tensor[start : start + size]
    missing = size - window.numel()
    return torch.cat((window, window.new_zeros(missing))) if missing else window


def spans(
    kind: str, groups: Sequence[Group], sizes: Sequence[int], index: int, count: int
) -> list[list[Span]]:
    """The parts of parameters in each of this rank's shards, in order.

    Parameters without a part are omitted.

    Args: see `cut_shards`.
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


def places(
    kind: str, groups: Sequence[Group], sizes: Sequence[int], count: int
) -> dict[str, list[Place]]:
    """Where every parameter is: its parts, in order, without padding.

    Args:
        sizes: elements of each shard of a rank, padding included.
        count: data-parallel world size.

    Raises:
        ValueError: a shard is too small for its contents.
    """
    for group, size in zip(groups, sizes, strict=True):
        _check_room(kind, group, size, count)
    found: dict[str, list[Place]] = {name: [] for group in groups for name, _ in group}
    # In a whole layout every rank holds the same.
    for rank in range(1 if kind == "whole" else count):
        for shard, parts in enumerate(spans(kind, groups, sizes, rank, count)):
            for part in parts:
                found[part.name].append(Place(rank, shard, part.start, part.count))
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
