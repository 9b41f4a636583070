"""Where the generators of a process stand, and what other ranks get of unsent gradients."""

from __future__ import annotations

import random

import numpy as np
import torch

from yolods.checkpoint.state import MeanMemory, rng_state, set_rng_state
from yolods.device.stored import Stored


def drawn() -> tuple:
    return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()


def test_after_a_state_is_taken_over_the_same_numbers_come_again():
    state = rng_state()
    first = drawn()
    assert drawn() != first
    set_rng_state(state)
    assert drawn() == first


def test_a_state_is_not_changed_by_what_is_drawn_after_it():
    state = rng_state()
    kept = state["torch"].clone()
    drawn()
    assert torch.equal(state["torch"], kept)
    set_rng_state(state)
    drawn()
    assert torch.equal(state["torch"], kept)


class Kept(Stored):
    """A tensor as if in a file."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__(value.to("meta"))
        self._value = value

    def view_as(self, other: torch.Tensor) -> Kept:
        return Kept(self._value.view_as(other))

    def write_to(self, target: torch.Tensor) -> None:
        target.copy_(self._value)


def test_ranks_get_the_mean_of_the_memories_in_files_and_in_memory():
    one, other = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    for ranks in ([one, other], [Kept(one), Kept(other)]):
        mean = MeanMemory(ranks)
        target = torch.full((2, 3), 7.0)
        mean.write_to(target)
        assert torch.equal(target, (one + other) / 2) and mean.shape == (2, 3)
        assert torch.equal(mean.view_as(torch.empty(6)).read(), target.view(6))
