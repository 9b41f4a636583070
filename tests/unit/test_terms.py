"""Terms of a rank's memory add up to what its device holds."""

from __future__ import annotations

from yolods.plan.memory.terms import RankMemory


def test_the_device_holds_every_term_but_the_host_s() -> None:
    held = RankMemory(
        weights=1,
        gradients=2,
        states=4,
        moving_average=8,
        buckets=16,
        activations=32,
        loss=64,
        reserve=128,
        host=256,
    )
    assert held.device == 255
