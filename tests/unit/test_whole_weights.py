"""A whole weight comes out of the ranks' shards in bounded pieces; values: tests/parity."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.far import Far, device  # noqa: F401
from yolods.zero import master_weights as module
from yolods.zero.master_weights import masters_of

PARAMETERS = 100


def zero1(count: int) -> SimpleNamespace:
    """One rank's ZeRO-1 optimizer in bf16: `count` parameters of three values in one flat fp32
    shard, and padding."""
    weights = [nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)) for _ in range(count)]
    shard = nn.Parameter(torch.arange(3.0 * count + 2))
    kind = type("DeepSpeedZeroOptimizer", (SimpleNamespace,), {})
    return kind(
        single_partition_of_fp32_groups=[shard],
        round_robin_bit16_groups=[weights],
        update_lp_params=None,
        dp_process_group=None,
    )


def zero3(count: int, numel: int) -> SimpleNamespace:
    """The first of two ranks' ZeRO-3 optimizer: a piece of each parameter in one flat shard."""
    weights = [nn.Parameter(torch.zeros(numel)) for _ in range(count)]
    kind = type("DeepSpeedZeroOptimizer_Stage3", (SimpleNamespace,), {})
    needs = dict.fromkeys(module.Zero3Masters.needs)
    piece = -(-numel // 2)
    return kind(
        **{
            **needs,
            "fp32_partitioned_groups_flat": [nn.Parameter(torch.arange(float(count * piece)))],
            "fp16_groups": [weights],
        },
        dp_process_group=None,
    )


class Sent:
    """torch.distributed on one rank that takes itself for the first of two; what the other one
    holds is this one's below zero."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        monkeypatch.setattr(module.dist, "get_world_size", lambda group: 2)
        monkeypatch.setattr(module.dist, "get_rank", lambda group: 0)
        monkeypatch.setattr(module.dist, "get_global_rank", lambda group, rank: rank + 10)
        monkeypatch.setattr(module.dist, "all_gather_into_tensor", self._gather)
        monkeypatch.setattr(module.dist, "broadcast", self._broadcast)
        self.at = 0.0

    def _gather(self, gathered: torch.Tensor, part: torch.Tensor, group: object) -> None:
        self.sizes.append(len(gathered))
        gathered.copy_(torch.cat((part, -part - 1)))

    def _broadcast(self, piece: torch.Tensor, source: int, group: object) -> None:
        self.sizes.append(len(piece))
        if source == 11:
            piece.copy_(-torch.arange(self.at, self.at + len(piece)) - 1)
            self.at += len(piece)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(monkeypatch)


def test_a_parameter_is_sent_by_those_that_hold_it_in_pieces_of_a_bounded_size(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHERED", 2)
    optimizer = zero1(PARAMETERS)  # of which the two ranks' shards would hold twice as many
    weights = optimizer.round_robin_bit16_groups[0]
    weights += [nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)) for _ in range(PARAMETERS)]
    masters = masters_of(optimizer)
    flat = torch.cat([masters.whole(each, keep=True) for each in weights])
    mine = torch.arange(302.0)
    assert torch.equal(flat, torch.cat((mine, -mine - 1))[:600])
    assert max(sent.sizes) == 2 and sum(sent.sizes) == 600, "no padding, and nothing twice"


@pytest.mark.parametrize("numel", [6, 7])
def test_a_parameter_is_gathered_from_equal_pieces(
    sent: Sent, monkeypatch: pytest.MonkeyPatch, numel: int
) -> None:
    monkeypatch.setattr(module, "GATHERED", 4)
    optimizer = zero3(3, numel)
    masters, piece = masters_of(optimizer), -(-numel // 2)
    for place, each in enumerate(optimizer.fp16_groups[0]):
        mine = torch.arange(float(place * piece), float((place + 1) * piece))
        expected = torch.cat((mine, -mine - 1))[:numel]
        assert torch.equal(masters.whole(each, keep=True), expected)
    assert max(sent.sizes) == 4


@pytest.mark.parametrize("made", [zero1(PARAMETERS), zero3(PARAMETERS, 3)])
def test_a_rank_that_keeps_nothing_helps_all_the_same(sent: Sent, made: SimpleNamespace) -> None:
    weights = getattr(made, "round_robin_bit16_groups", None) or made.fp16_groups
    assert masters_of(made).whole(weights[0][7], keep=False) is None
    assert sum(sent.sizes) in (3, 4)


def test_a_parameter_in_fp32_is_copied_and_nothing_is_sent(sent: Sent) -> None:
    optimizer = zero1(1)
    optimizer.round_robin_bit16_groups[0][0] = own = nn.Parameter(torch.ones(3))
    masters = masters_of(optimizer)
    copied = masters.whole(own, keep=True)
    own.data.zero_()
    assert copied.tolist() == [1, 1, 1] and sent.sizes == []
    assert masters.whole(own, keep=False) is None


def test_what_every_rank_has_whole_is_copied(device: type[Far]) -> None:  # noqa: F811
    weights = [nn.Parameter(torch.full((2,), float(number))) for number in range(3)]
    masters = masters_of(torch.optim.SGD(weights, lr=0.1))
    for number, each in enumerate(weights):
        copied = masters.whole(each, keep=True)
        assert copied.tolist() == [number, number] and copied.data_ptr() != each.data_ptr()
    assert masters.whole(weights[0], keep=False) is None
