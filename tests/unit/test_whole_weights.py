"""Whole weights come out of the ranks' shards in bounded pieces, not parameter by parameter;
values: tests/parity."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.far import Far, device, far  # noqa: F401
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


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Elements of each all-gather, on one rank that takes itself for two, the other one's values
    below zero."""
    sizes: list[int] = []

    def gather(gathered: torch.Tensor, part: torch.Tensor, group: object) -> None:
        sizes.append(len(gathered))
        gathered.copy_(torch.cat((part, -part - 1)))

    monkeypatch.setattr(module.dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(module.dist, "all_gather_into_tensor", gather)
    return sizes


def test_masters_are_gathered_in_pieces_of_a_bounded_size(gathers: list[int], monkeypatch) -> None:
    monkeypatch.setattr(module, "GATHERED", 128)
    optimizer = zero1(PARAMETERS)  # of which the two ranks' shards would hold twice as many
    optimizer.round_robin_bit16_groups[0] += [
        nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)) for _ in range(PARAMETERS)
    ]
    whole = masters_of(optimizer).whole(keep=True)
    assert len(gathers) == 5 and max(gathers) == 128
    assert [each for each, _ in whole] == optimizer.round_robin_bit16_groups[0]
    flat = torch.cat([value for _, value in whole])
    mine = torch.arange(302.0)
    assert torch.equal(flat, torch.cat((mine, -mine - 1))[:600])


def test_a_rank_that_keeps_nothing_helps_all_the_same(gathers: list[int]) -> None:
    assert masters_of(zero1(PARAMETERS)).whole(keep=False) == []
    assert gathers == [604]


@pytest.mark.slow
def test_what_every_rank_has_whole_is_copied_at_once(device: type[Far], monkeypatch) -> None:  # noqa: F811
    weights = [nn.Parameter(torch.full((2,), float(number))) for number in range(PARAMETERS)]
    monkeypatch.setattr(
        module.PlainMasters, "shards", lambda _: [far(each.data) for each in weights]
    )
    whole = masters_of(torch.optim.SGD(weights, lr=0.1)).whole(keep=True)
    assert (device.blocking, device.under_way, device.waits) == (0, 0, 1)
    assert [value[0].item() for _, value in whole] == list(range(PARAMETERS))
