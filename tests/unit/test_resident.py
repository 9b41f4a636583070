"""Small parameters of ZeRO-3 in one call; real ranks: tests/dist/test_transfers.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from yolods.zero.resident import gather_together


class Calls:
    """What is gathered, and how."""

    def __init__(self) -> None:
        self.singly: list[Any] = []
        self.together: list[Any] = []

    def parameter(self, status: str = "NOT_AVAILABLE", **part: Any) -> Any:
        return SimpleNamespace(
            ds_status=SimpleNamespace(name=status),
            ds_tensor=SimpleNamespace(**part),
            ds_secondary_tensor=None,
            all_gather=lambda given=None, async_op=False: self.singly.append(given),
            all_gather_coalesced=self._gather,
        )

    def _gather(self, given: Any) -> Any:
        self.together.append(given)
        return SimpleNamespace(wait=lambda: None)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_those_that_are_away_are_gathered_together(calls: Calls) -> None:
    first, _, third = resident = [
        calls.parameter(),
        calls.parameter("AVAILABLE"),
        calls.parameter(),
    ]
    gather_together(SimpleNamespace(persistent_parameters=resident))
    first.all_gather(resident)
    assert calls.together == [[first, third]] and calls.singly == []


def test_one_alone_and_what_is_quantized_or_doubled_take_deepspeeds_way(calls: Calls) -> None:
    plain, doubled, quantized = (
        calls.parameter(),
        calls.parameter(),
        calls.parameter(ds_quant_scale=1),
    )
    doubled.ds_secondary_tensor = object()
    gather_together(SimpleNamespace(persistent_parameters=[plain]))
    for given in (None, [plain], [plain, doubled], [plain, quantized]):
        plain.all_gather(given)
    assert len(calls.singly) == 4 and calls.together == []


def test_other_optimizers_are_left_alone() -> None:
    other, empty = SimpleNamespace(), SimpleNamespace(persistent_parameters=[])
    gather_together(other)
    gather_together(empty)
    assert vars(other) == {} and vars(empty) == {"persistent_parameters": []}
