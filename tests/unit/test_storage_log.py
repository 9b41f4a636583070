"""Storages are logged with the moments at which they begin and end."""

from __future__ import annotations

import numpy as np
import torch

from yolods.plan.memory.storage_log import StorageLog, held_bytes


def test_a_storage_counts_while_something_refers_to_it() -> None:
    with StorageLog() as log:
        first = torch.empty(10)
        second = torch.empty(5)
        del first
        third = torch.empty(20)
    assert log.held().tolist() == [40, 60, 20, 100, 0]
    assert second.numel() + third.numel() == 25


def test_views_and_changes_in_place_allocate_nothing() -> None:
    with StorageLog() as log:
        whole = torch.zeros(10)
        part = whole[2:4].add_(1)
    assert log.sizes == [40]
    assert part.sum() == 2


def test_what_was_there_before_is_left_out() -> None:
    given = torch.zeros(3)
    with StorageLog() as log:
        log.leave_out(given)
        given.add_(1)
        made = torch.zeros(4)
        log.leave_out(made)
    assert log.sizes == [0]


def test_a_workspace_exists_beside_the_result() -> None:
    with StorageLog(workspace=lambda operation, arguments: (1000, 0)) as log:
        made = torch.empty(10)
    assert log.held().tolist() == [40, 1040, 40, 0]
    assert made.numel() == 10 and not log.for_several


def test_of_a_workspace_a_part_may_be_for_several_images() -> None:
    with StorageLog(workspace=lambda operation, arguments: (1000, 500)) as log:
        made = torch.empty(10)
    assert log.sizes == [40, 1000, 500] and log.for_several == [2]
    assert log.held().max() == 1540 and made.numel() == 10


def test_only_one_kind_of_device_counts() -> None:
    with StorageLog(device="meta") as log:
        host, meta = torch.empty(10), torch.empty(5, device="meta")
    assert log.sizes == [20]
    assert host.numel() == 2 * meta.numel()


def test_bytes_over_time() -> None:
    held = held_bytes(np.array([4, 8]), np.array([0, 1]), np.array([2, 3]), 3)
    assert held.tolist() == [4, 12, 8, 0]
