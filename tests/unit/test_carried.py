"""The bytes of each function of torch.distributed, against numbers worked out by hand."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.distributed as dist

from yolods.distributed.exchange import exchange
from yolods.traffic import carried as module
from yolods.traffic.carried import FORMS, Carried, carried_by

FLOATS = torch.zeros(250)  # 1000 bytes


class Group(dist.ProcessGroup):
    """Rank 1 of four, which are the ranks 10 to 13 of the world."""

    def __init__(self, own: int = 1, count: int = 4) -> None:
        super().__init__(own, count)
        self.own, self.count = own, count

    def rank(self) -> int:
        return self.own

    def size(self) -> int:
        return self.count

    @property
    def group_name(self) -> str:
        return "four"


@pytest.fixture(autouse=True)
def numbering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_group_rank", lambda group, rank: rank - 10)
    monkeypatch.setattr(dist, "get_global_rank", lambda group, rank: rank + 10)


@pytest.mark.parametrize("function", FORMS)
def test_arguments_are_where_torch_takes_them(function: str) -> None:
    called = exchange if function == "exchange" else getattr(dist, function)
    form, names = FORMS[function], list(inspect.signature(called).parameters)
    assert names[form.group] == "group"
    assert not form.payload or names[form.place] == form.payload
    assert not form.peer or names[form.peer_place] == form.peer
    assert not form.peer or f"group_{form.peer}" in names


def sent(function: str, *arguments: Any, own: int = 1, backend: str = "gloo", **named: Any) -> Any:
    found = carried_by(function, arguments, {"group": Group(own), **named}, backend)
    assert found is not None and found.group == "four"
    return round(found.sent, 6)


def test_rings() -> None:
    """On four ranks: each of 3 rounds of reduction, and of collection, sends a quarter."""
    assert sent("all_reduce", FLOATS) == 1500
    assert sent("all_reduce_coalesced", [FLOATS, FLOATS]) == 3000
    assert sent("reduce_scatter_tensor", None, FLOATS, backend="nccl") == 750
    assert sent("reduce_scatter", None, [FLOATS] * 4, backend="nccl") == 3000
    assert sent("reduce_scatter_tensor", None, FLOATS) == 1500, "gloo's is an all-reduce"
    # What a rank puts in is a quarter of what all get.
    assert sent("all_gather_into_tensor", None, FLOATS) == 3000
    assert sent("all_gather", None, FLOATS) == 3000
    assert sent("all_gather_coalesced", None, [FLOATS, FLOATS]) == 6000


def test_from_one_rank_to_all() -> None:
    """gloo: the root sends to 1 and 2 places behind it, its neighbour to the third."""
    by_rank = [sent("broadcast", FLOATS, 11, own=rank) for rank in (1, 2, 3, 0)]
    assert by_rank == [2000, 1000, 0, 0]
    assert [sent("broadcast", FLOATS, 11, own=rank, backend="nccl") for rank in (1, 2, 3, 0)] == [
        1000,
        1000,
        1000,
        0,
    ]
    assert sent("scatter", None, [FLOATS] * 4, 11) == 3000
    assert sent("scatter", None, None, 12) == 0


def test_from_all_to_one_rank() -> None:
    assert sent("reduce", FLOATS, 11) == 750
    assert sent("reduce", FLOATS, 12) == 1000
    assert sent("reduce", FLOATS, 12, backend="nccl") == 1000
    assert sent("reduce", FLOATS, 11, backend="nccl") == 0
    assert sent("gather", FLOATS, None, 12) == 1000
    assert sent("gather", FLOATS, None, 11) == 0
    assert sent("gather", FLOATS, group_dst=1) == 0
    assert sent("gather", FLOATS) == 1000, "without a root the first rank is meant"


def test_others() -> None:
    assert sent("all_to_all_single", None, FLOATS) == 750
    splits = {"input_split_sizes": [100, 50, 100, 0], "own": 1}
    assert sent("all_to_all_single", None, FLOATS, **splits) == 800
    assert sent("all_to_all", None, [FLOATS] * 4) == 3000
    assert sent("barrier") == 0


def test_a_boundary_has_another_end() -> None:
    group = {"group": Group()}
    there = carried_by("isend", (FLOATS.half(), 13), group, "gloo")
    assert there == Carried("boundary", "four", 500, 13)
    assert carried_by("irecv", (FLOATS,), {"src": 10, **group}, "nccl") == Carried(
        "boundary", "four", 0, 10
    )
    assert carried_by("send", (FLOATS,), {"group_dst": 2, **group}, "gloo") == Carried(
        "boundary", "four", 1000, 12
    )


def test_arguments_by_name() -> None:
    assert sent("all_reduce", tensor=FLOATS) == 1500
    assert sent("all_gather_into_tensor", output_tensor=None, input_tensor=FLOATS) == 3000


def test_who_is_alone_or_outside_sends_nothing() -> None:
    assert carried_by("all_reduce", (FLOATS,), {"group": Group(0, 1)}, "gloo") is None
    assert (
        carried_by("all_reduce", (FLOATS,), {"group": dist.GroupMember.NON_GROUP_MEMBER}, "x")
        is None
    )
    assert carried_by("all_reduce", (FLOATS,), {}, "gloo") is None, "there is no world"


def test_the_page_of_rules_names_every_function() -> None:
    text = str(module.__doc__)
    assert all(word in text for word in ("all_reduce", "reduce_scatter", "all_gather", "send"))
