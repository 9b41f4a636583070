"""Tensors that are not in memory yet: read when their values are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from yolods.device.host_copy import HostCopy, fill, host_copy
from yolods.device.stored import Stored


class Ones(Stored):
    """Ones, counted whenever they are written."""

    written = 0

    def view_as(self, other: Tensor) -> Ones:
        return Ones(self.like.view(other.shape))

    def write_to(self, target: Tensor) -> None:
        Ones.written += 1
        target.fill_(1)


def test_it_is_read_where_its_values_are_needed() -> None:
    Ones.written = 0
    stored = Ones(torch.empty(2, 3, dtype=torch.float16, device="meta"))
    assert (stored.shape, stored.numel()) == ((2, 3), 6)
    assert stored.view_as(torch.zeros(6)).shape == (6,) and Ones.written == 0
    assert torch.equal(stored.read(), torch.ones(2, 3, dtype=torch.float16))
    targets = [torch.zeros(2, 3), torch.zeros(1)]
    fill(targets, [stored, torch.tensor([5.0])])
    assert targets[0].tolist() == [[1, 1, 1], [1, 1, 1]] and targets[1].item() == 5
    copied = host_copy({"a": [stored, torch.zeros(1)], "b": 3})
    assert torch.equal(copied["a"][0], stored.read()) and copied["b"] == 3
    assert HostCopy(leave=("a",)).take({"a": stored})["a"] is stored
