"""Probes on a small model, and whom the ranks' accounts blame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from yolods.stability.attribution import INPUT, Account, BadValue, Probe, culprits


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleList(
            [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.SiLU(inplace=True), nn.Conv2d(2, 1, 3)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.model:
            x = layer(x)
        return x


def observe(
    net: Net, images: list[Tensor], wrong: Callable[[int], None] = lambda number: None
) -> Probe:
    """Forward and backward of each micro-batch under a probe."""
    probe = Probe(net)
    with probe.attached():
        for number, batch in enumerate(images):
            wrong(number)
            probe.at("forward", number)
            loss = net(batch).sum()
            probe.at("backward", number)
            loss.backward()
    return probe


def batches(count: int = 2) -> list[Tensor]:
    return [
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(number))
        for number in range(count)
    ]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert observe(Net(), batches()).findings() == []


@pytest.mark.parametrize(("value", "kind"), [(math.inf, "inf"), (math.nan, "nan")])
def test_a_bad_image_is_told_by_its_place(value: float, kind: str) -> None:
    images = batches()
    images[1][2, 0, 4, 4] = value
    found = [each for each in observe(Net(), images).findings() if each.phase == "forward"]
    assert [replace(each, order=0) for each in found] == [BadValue("forward", INPUT, kind, 1, (2,))]


def test_a_bad_weight_is_told_from_a_bad_activation() -> None:
    net = Net()
    with torch.no_grad():
        net.model[3].weight[0, 0, 0, 0] = math.nan
    first, *_ = observe(net, batches(1)).findings()
    assert (first.phase, first.name, first.in_weights) == ("forward", "model.3", True)


def test_a_bad_activation_is_found_where_it_begins() -> None:
    net = Net()
    net.model[3].register_forward_hook(
        lambda module, inputs, output: output * torch.tensor(math.inf)
    )
    first, *_ = observe(net, batches(1)).findings()
    assert (first.phase, first.name, first.in_weights) == ("forward", "model.3", False)


def test_a_bad_gradient_is_found_where_it_begins() -> None:
    net = Net()

    def poison(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient * math.inf)

    net.model[0].register_forward_hook(poison)
    (found,) = observe(net, batches(1)).findings()
    assert (found.phase, found.name, found.micro_batch) == ("backward", "model.0", 0)


def test_a_bad_parameter_gradient_is_found_in_its_micro_batch_alone() -> None:
    net, now = Net(), []
    net.model[3].weight.register_hook(
        lambda gradient: gradient * (math.nan if now[-1] == 1 else 1.0)
    )
    (found,) = observe(net, batches(3), now.append).findings()
    assert (found.phase, found.name, found.micro_batch, found.kind) == (
        "backward",
        "model.3.weight",
        1,
        "nan",
    )


def test_the_largest_gradient_is_that_of_the_last_suspect_here() -> None:
    net, now = Net(), []
    net.model[3].weight.register_hook(lambda gradient: gradient * (1e6 if now[-1] == 1 else 1.0))
    probe = observe(net, batches(3), now.append)
    found = probe.largest(["model.0.weight", "model.3.weight", "model.9.weight"])
    assert found is not None
    norm, finding = found
    assert (finding.name, finding.micro_batch, finding.kind) == ("model.3.weight", 1, "spike")
    assert norm > 1e5
    assert probe.largest(["model.9.weight"]) is None


def test_hooks_are_gone_afterwards() -> None:
    net = Net()
    observe(net, batches(1))
    assert not any(module._forward_hooks for module in net.modules())
    assert not any(parameter._backward_hooks for parameter in net.parameters())


FILES = ((("a.jpg",), ("b.jpg",)), (("c.jpg",), ("d.jpg",)))


def account(
    rank: int,
    *findings: BadValue,
    stage: int = 0,
    replica: int | None = None,
    losses: tuple[float, ...] = (1.0, 1.0),
) -> Account:
    at = rank if replica is None else replica
    return Account(
        rank, f"host{rank}", stage, at, findings, None, losses, FILES if stage == 0 else ()
    )


def test_forward_comes_before_backward_and_the_earliest_stage_first() -> None:
    first = account(
        0, BadValue("backward", "model.3.conv.weight", "nan", 1), stage=0, replica=0, losses=()
    )
    second = account(
        1,
        BadValue("forward", "model.13.conv", "inf", 1, (0,)),
        BadValue("backward", "model.20.conv", "nan", 1),
        stage=1,
        replica=0,
        losses=(1.0, math.nan),
    )
    (found,) = culprits([first, second], "forward")
    assert (found.name, found.layer, found.rank, found.stage, found.micro_batch) == (
        "model.13.conv",
        "model.13",
        1,
        1,
        1,
    )
    assert (found.files, found.single_images) == (("c.jpg",), True)


def test_backward_begins_at_the_latest_stage() -> None:
    first = account(
        0, BadValue("backward", "model.3.conv.weight", "nan", 0), stage=0, replica=0, losses=()
    )
    second = account(1, BadValue("backward", "model.20.conv", "inf", 0), stage=1, replica=0)
    (found,) = culprits([first, second], "overflow")
    assert (found.name, found.rank, found.kind) == ("model.20.conv", 1, "inf")
    assert (found.files, found.single_images) == (("a.jpg", "b.jpg"), False)


def test_a_loss_that_went_bad_by_itself_is_called_so() -> None:
    (found,) = culprits([account(0, losses=(1.0, math.inf))], "forward")
    assert (found.name, found.kind, found.micro_batch) == ("loss", "inf", 1)


def test_every_bad_micro_batch_of_every_replica_is_named() -> None:
    found = culprits(
        [
            account(0, BadValue("backward", "model.3.conv.weight", "nan", 0)),
            account(1, BadValue("backward", "model.4.conv.weight", "inf", 1)),
        ],
        "backward",
    )
    assert [(each.rank, each.micro_batch, each.layer) for each in found] == [
        (0, 0, "model.3"),
        (1, 1, "model.4"),
    ]


def test_a_spike_is_the_largest_of_all_ranks() -> None:
    spike = [BadValue("backward", "model.7.conv.weight", "spike", number) for number in range(2)]
    accounts = [
        Account(0, "a", 0, 0, (), (3.0, spike[0]), (1.0, 1.0), FILES),
        Account(1, "b", 0, 1, (), (9e4, spike[1]), (1.0, 1.0), FILES),
    ]
    (found,) = culprits(accounts, "gradient_spike")
    assert (found.rank, found.micro_batch, found.files) == (1, 1, ("c.jpg", "d.jpg"))


def test_a_loss_spike_is_the_largest_loss() -> None:
    (found,) = culprits(
        [account(0, losses=(1.0, 2.0)), account(1, losses=(90.0, 2.0))], "loss_spike"
    )
    assert (found.name, found.rank, found.micro_batch) == ("loss", 1, 0)


def test_where_the_second_run_was_clean_nobody_is_blamed() -> None:
    assert culprits([account(0), account(1)], "backward") == []
    assert culprits([account(0)], "gradient_spike") == []


def test_of_shared_statistics_the_first_of_all_replicas_is_the_origin() -> None:
    """SyncBN hands one replica's nan to the others, in the very next layer."""
    victim = account(0, BadValue("forward", "model.0.bn", "nan", 1, (0, 1), order=5))
    guilty = account(1, BadValue("forward", INPUT, "nan", 1, (1,), order=3))
    (found,) = culprits([victim, guilty], "forward", shared=True)
    assert (found.name, found.rank, found.files) == (INPUT, 1, ("d.jpg",))
    assert len(culprits([victim, guilty], "forward")) == 2


def test_a_mosaic_is_told_by_all_of_its_files() -> None:
    files = (((("a.jpg", "p.jpg", "q.jpg", "a.jpg")), ("b.jpg",)),)
    only = Account(
        0, "host0", 0, 0, (BadValue("forward", INPUT, "nan", 0, (0,)),), None, (math.nan,), files
    )
    (found,) = culprits([only], "forward")
    assert (found.files, found.single_images) == (("a.jpg", "p.jpg", "q.jpg"), True)
