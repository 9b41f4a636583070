"""Shards of any layout to whole named tensors, and back: what lets a checkpoint go on under another layout.

Pure functions of tensors and of names with shapes. A layout cuts a list of groups, each a list of parameters, into as
many shards a rank as there are groups; `master_weights.Kind` says how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Group = Sequence[tuple[str, Sequence[int]]]
"""Names and shapes of the parameters in a shard, in order."""


@dataclass(frozen=True)
class Span:
    """Where a part of one parameter lies in a shard."""

    name: str
    """Whose."""
    start: int
    """Its first element's place in the shard."""
    count: int
    """Elements; padding is not counted."""


def join_shards(kind: str, groups: Sequence[Group], ranks: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Put shards together.

    Args:
        kind: `whole`, `flat` or `pieces`.
        groups: what each shard holds.
        ranks: for every data-parallel rank its shards, one a group.

    Returns:
        every parameter whole, by name.

    Raises:
        ValueError: a shard is too small for what it is said to hold.
    """
    whole: dict[str, Tensor] = {}
    for place, group in enumerate(groups):
        shards = [shards[place].flatten() for shards in ranks]
        for shard in shards:
            _check_room(kind, group, shard.numel(), len(ranks))
        whole |= _join_pieces(shards, group) if kind == "pieces" else _split(_flat(kind, shards), group)
    return whole


def _flat(kind: str, shards: list[Tensor]) -> Tensor:
    return shards[0] if kind == "whole" else torch.cat(shards)


def _split(flat: Tensor, group: Group) -> dict[str, Tensor]:
    """Cut parameters off a flat tensor, whose end may be padding."""
    whole, start = {}, 0
    for name, shape in group:
        count = math.prod(shape)
        whole[name] = flat[start : start + count].view(tuple(shape)).clone()
        start += count
    return whole


def _join_pieces(shards: list[Tensor], group: Group) -> dict[str, Tensor]:
    whole, start = {}, 0
    for name, shape in group:
        count = math.prod(shape)
        piece = math.ceil(count / len(shards))
        whole[name] = torch.cat([shard[start : start + piece] for shard in shards])[:count].view(tuple(shape)).clone()
        start += piece
    return whole


def cut_shards(
    kind: str, groups: Sequence[Group], whole: Mapping[str, Tensor], sizes: Sequence[int], index: int, count: int
) -> list[Tensor]:
    """This rank's shards of whole tensors; inverse of `join`.

    Args:
        sizes: elements of each of this rank's shards, padding included.
        index: data-parallel rank.
        count: data-parallel ranks.

    Returns:
        flat tensors, one a group; padding is 0.

    Raises:
        ValueError: a tensor has not the shape that a group says, or a shard is too small for what it is to hold.
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


def misfits(groups: Sequence[Group], whole: Mapping[str, Tensor]) -> list[str]:
    """A line for each parameter of which `whole` has another shape, or nothing: one that is too large or too small
    would shift all that lie behind it in a shard."""
    lines = []
    for name, shape in (member for group in groups for member in group):
        if name not in whole:
            lines.append(f"{name} {tuple(shape)} is missing")
        elif tuple(whole[name].shape) != tuple(shape):
            lines.append(f"{name} is {tuple(whole[name].shape)} instead of {tuple(shape)}")
    return lines


def _check_room(kind: str, group: Group, size: int, count: int) -> None:
    """Only padding may be left over: `count` shards of `size` have to hold all of a group."""
    numels = [math.prod(shape) for _, shape in group]
    total = sum(numels)
    needed = sum(math.ceil(numel / count) for numel in numels) if kind == "pieces" else total
    room = size * count if kind == "flat" else size
    if room < needed or (kind == "whole" and room != needed):
        held = f"{count} x {size}" if kind == "flat" else size
        raise ValueError(f"shards of {group[0][0]} and its like hold {held} elements, but need {needed}")


def _piece(tensor: Tensor, index: int, count: int) -> Tensor:
    piece = math.ceil(tensor.numel() / count)
    return _window(tensor, index * piece, piece)


def _window(tensor: Tensor, start: int, size: int) -> Tensor:
    """`size` elements from `start` on, with zeros where there are none."""
    window = tensor[start : start + size]
    missing = size - window.numel()
    return torch.cat((window, window.new_zeros(missing))) if missing else window


def spans(kind: str, groups: Sequence[Group], sizes: Sequence[int], index: int, count: int) -> list[list[Span]]:
    """What of each parameter lies in this rank's shards, in order; a parameter without a part is left out.

    Args: as for `cut`.
    """
    found = []
    for group, size in zip(groups, sizes, strict=True):
        first, start, parts = (index * size if kind == "flat" else 0), 0, []
        for name, shape in group:
            numel = math.prod(shape)
            if kind == "pieces":
                piece = math.ceil(numel / count)
                parts.append(Span(name, start, min(piece, max(numel - index * piece, 0))))
                start += piece
            else:
                begin, end = max(start, first), min(start + numel, first + size)
                parts.append(Span(name, begin - first, end - begin))
                start += numel
        found.append([part for part in parts if part.count > 0])
    return found
