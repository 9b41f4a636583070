"""What is copied from a device to the host is copied at once, with one wait, and is a copy."""

from __future__ import annotations

import torch

from tests.far import Far, device, far  # noqa: F401
from yolods.device.host_copy import host_copy, on_host
from yolods.engine.snapshots import Snapshots

PARTS = 200


def test_a_snapshot_waits_once_however_many_tensors_it_has(device: type[Far]) -> None:  # noqa: F811
    moving = {
        "masters": [far([float(number)]) for number in range(PARTS)],
        "optimizer": [{"step": torch.tensor(5.0), "exp_avg": far([1.0, 2.0])}],
        "ema": {"updates": 7, "shards": (far([3.0]),)},
    }
    recovery = Snapshots(lambda: [], lambda: moving, every=100, restores=True)
    recovery.remember()
    assert (device.blocking, device.under_way, device.waits) == (0, 0, 1)
    held = recovery.snapshot
    assert held is not None
    assert [each.item() for each in held["masters"]] == list(range(PARTS))
    assert (
        held["optimizer"][0]["exp_avg"].tolist() == [1.0, 2.0]
        and held["ema"]["shards"][0].item() == 3.0
    )
    assert held["ema"]["updates"] == 7


def test_a_copy_is_in_memory_of_its_own_and_nothing_waits_on_a_cpu(device: type[Far]) -> None:  # noqa: F811
    source = {"a": [torch.ones(3)]}
    copied = host_copy(source)
    source["a"][0] += 1
    assert copied["a"][0].tolist() == [1.0, 1.0, 1.0]
    tensor = torch.ones(2)
    assert on_host(tensor)[0].data_ptr() == tensor.data_ptr()
    assert device.waits == 0


def test_what_is_brought_to_the_host_waits_once(device: type[Far]) -> None:  # noqa: F811
    first, second = on_host(far([1.0]), far([2.0]))
    assert (type(first), type(second)) == (torch.Tensor, torch.Tensor)
    assert (device.blocking, device.under_way, device.waits) == (0, 0, 1)
