"""BatchNorm's statistics of a finished model, against those of all images at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yolods.model.bn_statistics import Tallies
from yolods.model.layers import BatchNormFloat32, SyncBatchNormFloat32

CPU = torch.device("cpu")


def layer() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3).eval()
    norm.momentum = 0.03
    return norm


def images(seed: int, count: int) -> torch.Tensor:
    return (
        torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * (seed + 1)
        + seed
    )


def test_statistics_are_those_of_all_images_whatever_their_batches():
    norm = layer()
    tallies = Tallies([norm], CPU)
    batches = [images(0, 4), images(1, 2)]
    with tallies.listening():
        for batch in batches:
            norm(batch)
            tallies.add(len(batch))
    tallies.apply()
    together = torch.cat(batches).double()
    torch.testing.assert_close(norm.running_mean, together.mean((0, 2, 3)).float())
    # Each batch's own variance is unbiased: of so many values one counts as lost.
    means = torch.stack([batch.double().mean((0, 2, 3)) for batch in batches])
    variances = torch.stack([batch.double().var((0, 2, 3)) for batch in batches])
    share = torch.tensor([4 / 6, 2 / 6], dtype=torch.float64)[:, None]
    expected = (share * (variances + means**2)).sum(0) - (share * means).sum(0) ** 2
    torch.testing.assert_close(norm.running_var, expected.float())


def test_a_batch_of_no_images_to_count_changes_nothing():
    norm = layer()
    tallies = Tallies([norm], CPU)
    with tallies.listening():
        norm(images(0, 4))
        tallies.add(4)
        before = [each.clone() for each in tallies.sums()]
        norm(images(1, 2))
        tallies.add(0)
    assert all(torch.equal(one, other) for one, other in zip(tallies.sums(), before, strict=True))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SyncBatchNormFloat32])
def test_within_a_layer_counts_its_own_batch_alone_and_afterwards_is_as_before(kind):
    norm = layer()
    norm.__class__ = kind
    with Tallies([norm], CPU).listening():
        assert norm.training and norm.momentum == 1.0
        assert type(norm) is (BatchNormFloat32 if kind is SyncBatchNormFloat32 else kind)
        norm(images(0, 4))
    assert (type(norm), norm.momentum, norm.training) == (kind, 0.03, False)
    assert norm.num_batches_tracked == 0
