"""Where the generators of a process stand."""

from __future__ import annotations

import random

import numpy as np
import torch

from yolods.checkpoint.state import rng_state, set_rng_state


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
