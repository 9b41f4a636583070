"""Shards of any layout as whole tensors and back, all at once: the judge of the parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yolods.zero.shards import Group


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
    """
    whole: dict[str, Tensor] = {}
    for place, group in enumerate(groups):
        shards = [shards[place].flatten() for shards in ranks]
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
    """
    shards = []
    for group, size in zip(groups, sizes, strict=True):
        parts = [whole[name].flatten() for name, _ in group]
        if kind == "pieces":
            shard = torch.cat([_piece(part, index, count) for part in parts])
        elif kind == "flat":
            shard = _window(torch.cat(parts), index * size, size)
        else:
            shard = torch.cat(parts)
        shards.append(_window(shard, 0, size))
    return shards


def _piece(tensor: Tensor, index: int, count: int) -> Tensor:
    piece = math.ceil(tensor.numel() / count)
    return _window(tensor, index * piece, piece)


def _window(tensor: Tensor, start: int, size: int) -> Tensor:
    """`size` elements from `start` on, filled up with zeros at the end."""
    window = tensor[start : start + size]
    missing = size - window.numel()
    return torch.cat((window, window.new_zeros(missing))) if missing else window
