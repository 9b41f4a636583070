"""Shards of every kind, put together and cut again: nothing lost, padding zero, whatever the sizes
and counts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.whole_shards import cut_shards, join_shards
from yolods.zero.shards import Group, fill_shard, locate, misfits, spans

KINDS = ("whole", "flat", "pieces")
AWKWARD: list[list[Group]] = [
    [[("a", (1,))]],
    [[("a", ())], [("b", (7,))]],
    [[("a", (3,)), ("b", (2, 5)), ("c", (1,))], [("d", (16, 3, 3, 3)), ("e", (13,))]],
    [[("a", (2,)), ("b", (2,)), ("c", (2,))], [("d", (1,)), ("e", (1,)), ("f", (1,)), ("g", (1,))]],
    [[("a", (0,)), ("b", (5,))]],
]


def values_of(groups: list[Group]) -> dict[str, Tensor]:
    """Every element another number."""
    counter = itertools.count(1)
    return {
        name: torch.tensor([float(next(counter)) for _ in range(math.prod(shape))]).view(
            tuple(shape)
        )
        for group in groups
        for name, shape in group
    }


def size_of(kind: str, group: Group, count: int, align: int) -> int:
    """Elements of one rank's shard, as DeepSpeed pads them."""
    sizes = [math.prod(shape) for _, shape in group]
    if kind == "pieces":
        return sum(math.ceil(size / count) for size in sizes)
    return sum(sizes) if kind == "whole" else math.ceil(sum(sizes) / (count * align)) * align


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("align", [1, 4])
@pytest.mark.parametrize("groups", AWKWARD, ids=range(len(AWKWARD)))
def test_cutting_and_joining_are_inverse(kind, count, align, groups):
    if kind == "whole":
        groups = [[member] for group in groups for member in group]
    values = values_of(groups)
    sizes = [size_of(kind, group, count, align) for group in groups]
    ranks = [cut_shards(kind, groups, values, sizes, index, count) for index in range(count)]
    assert all([shard.numel() for shard in shards] == sizes for shards in ranks)
    back = join_shards(kind, groups, ranks)
    assert list(back) == list(values)
    assert all(
        torch.equal(back[name], value) and back[name].shape == value.shape
        for name, value in values.items()
    )
    again = [cut_shards(kind, groups, back, sizes, index, count) for index in range(count)]
    assert all(
        torch.equal(one, two)
        for mine, other in zip(ranks, again, strict=True)
        for one, two in zip(mine, other, strict=True)
    )


def test_flat_shards_are_equal_parts_of_what_is_laid_end_to_end():
    groups = [[("a", (3,)), ("b", (2, 2))]]
    values = values_of(groups)
    shards = [cut_shards("flat", groups, values, [4], index, 2)[0].tolist() for index in range(2)]
    assert shards == [[1, 2, 3, 4], [5, 6, 7, 0]]


def test_pieces_are_equal_parts_of_each_parameter():
    groups = [[("a", (3,)), ("b", (5,))]]
    values = values_of(groups)
    shards = [cut_shards("pieces", groups, values, [5], index, 2)[0].tolist() for index in range(2)]
    assert shards == [[1, 2, 4, 5, 6], [3, 0, 7, 8, 0]]


def test_from_one_kind_to_another():
    groups = AWKWARD[2]
    values = values_of(groups)
    for (one, two), count in itertools.product(
        itertools.product(("flat", "pieces"), repeat=2), (2, 3)
    ):
        sizes = [size_of(one, group, 2, 4) for group in groups]
        ranks = [cut_shards(one, groups, values, sizes, index, 2) for index in range(2)]
        other = [size_of(two, group, count, 1) for group in groups]
        recut = [
            cut_shards(two, groups, join_shards(one, groups, ranks), other, index, count)
            for index in range(count)
        ]
        back = join_shards(two, groups, recut)
        assert all(torch.equal(back[name], value) for name, value in values.items())


def test_joined_tensors_own_their_memory():
    """Else a parameter of a few bytes would keep a shard of the whole model alive."""
    groups = [[("a", (3,)), ("b", (2,))]]
    shard = torch.arange(6.0)
    back = join_shards("flat", groups, [[shard]])
    assert back["a"].untyped_storage().nbytes() == 12
    shard.zero_()
    assert back["b"].tolist() == [3, 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("align", [1, 4])
@pytest.mark.parametrize("groups", AWKWARD, ids=range(len(AWKWARD)))
def test_spans_say_where_each_parameter_lies(kind, count, align, groups):
    """The numbers that they point at on all ranks are each parameter's own, in order, and no
    padding."""
    if kind == "whole":
        groups = [[member] for group in groups for member in group]
    values = values_of(groups)
    sizes = [size_of(kind, group, count, align) for group in groups]
    found: dict[str, list[float]] = {name: [] for name in values}
    for index in range(1 if kind == "whole" else count):
        shards = cut_shards(kind, groups, values, sizes, index, count)
        for shard, parts in zip(shards, spans(kind, groups, sizes, index, count), strict=True):
            for part in parts:
                assert part.count > 0
                found[part.name] += shard[part.start : part.start + part.count].tolist()
    assert found == {name: value.flatten().tolist() for name, value in values.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("align", [1, 4])
@pytest.mark.parametrize("groups", AWKWARD, ids=range(len(AWKWARD)))
def test_one_parameter_after_the_other_is_found_and_written(kind, count, align, groups):
    """As all at once: from the parts of all ranks, and into a rank's shards with what was there."""
    if kind == "whole":
        groups = [[member] for group in groups for member in group]
    values = values_of(groups)
    sizes = [size_of(kind, group, count, align) for group in groups]
    ranks = [cut_shards(kind, groups, values, sizes, index, count) for index in range(count)]
    found = {
        name: [ranks[part.rank][part.shard][part.start : part.start + part.count] for part in parts]
        for name, parts in locate(kind, groups, sizes, count).items()
    }
    assert {
        name: torch.cat([torch.zeros(0), *parts]).tolist() for name, parts in found.items()
    } == {name: value.flatten().tolist() for name, value in values.items()}
    asked: list[str] = []

    def leaf(name: str) -> Tensor:
        asked.append(name)
        return values[name]

    for index, shards in enumerate(ranks):
        for group, expected in zip(groups, shards, strict=True):
            shape = group[0][1] if kind == "whole" else expected.shape
            shard = torch.full(tuple(shape), torch.nan)
            asked.clear()
            fill_shard(kind, group, shard, leaf, index, count)
            assert torch.equal(shard.flatten(), expected)
            assert len(asked) == len({*asked}) <= len(group)


def test_a_weight_in_another_memory_format_is_written_by_its_indices():
    value = torch.arange(24.0).view(1, 2, 3, 4)
    shard = torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last)
    fill_shard("whole", [("a", (1, 2, 3, 4))], shard, {"a": value}.__getitem__, 0, 1)
    assert torch.equal(shard, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 5), (2, 4), (5, 2), (10,)])
def test_a_tensor_of_another_size_is_not_cut(kind, shape):
    """It would shift all that lie behind it, or leave zeros; the same number of elements may be of
    another meaning."""
    groups: list[Group] = [[("a", (3,))], [("head", (2, 5))], [("b", (4,))]]
    values = {**values_of(groups), "head": torch.ones(shape)}
    shard = torch.zeros(size_of(kind, groups[1], 2, 1))
    with pytest.raises(ValueError) as caught:
        fill_shard(kind, groups[1], shard, values.__getitem__, 0, 2)
    line = f"head is {shape} instead of (2, 5)"
    assert str(caught.value) == line
    shapes = {name: value.shape for name, value in values.items()}
    assert misfits(groups, shapes) == [line]
    del shapes["head"]
    assert misfits(groups, shapes) == ["head (2, 5) is missing"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_too_small_is_neither_cut_nor_joined(kind):
    groups: list[Group] = [[("a", (3,))], [("b", (8,))]]
    values = values_of(groups)
    sizes = [size_of(kind, group, 2, 1) for group in groups]
    small = [sizes[0], sizes[1] - 1]
    with pytest.raises(ValueError, match="shards that start with b hold"):
        fill_shard(kind, groups[1], torch.zeros(small[1]), values.__getitem__, 0, 2)
    with pytest.raises(ValueError, match="shards that start with b hold"):
        locate(kind, groups, small, 2)
