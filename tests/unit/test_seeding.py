"""Every generator of a rank is seeded."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from yolods.training.setup.seeding import seed_everything


@pytest.mark.parametrize("seed", [0, 7])
def test_every_generator_is_seeded(seed):
    def draw():
        seed_everything(seed, deterministic=False)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()
    assert draw() != (seed_everything(seed + 1, deterministic=False), random.random())
