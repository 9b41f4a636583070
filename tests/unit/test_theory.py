"""What theory asks, against sums by hand."""

from __future__ import annotations

import pytest
from torch import nn

from tests.plans import costs
from yolods.plan.layout import Layout
from yolods.plan.traffic.model_facts import StageFacts, Weight
from yolods.traffic.theory import need_of_stages, need_of_whole, needed

CONV, NORM = Weight(1000, True, "weight", True), Weight(24, True, "bn", False)
FIXED = Weight(100, False, "weight", True)
STAGE = StageFacts((CONV, NORM, FIXED), (12,), 0, 0)


@pytest.mark.parametrize(
    ("level", "accumulation", "once", "sent", "name"),
    [
        (0, 4, True, 2 * 4 * 1024, "ZeRO-0 needs 2P"),
        (1, 4, True, 2 * 4 * 1024, "ZeRO-1 needs 2P"),
        (2, 1, False, 2 * 4 * 1024, "ZeRO-2 needs 2P"),
        (2, 4, True, 2 * 4 * 1024, "ZeRO-2 needs 2P"),
        (2, 4, False, 5 * 4 * 1024, "ZeRO-2 needs 5P"),
        # What is frozen is divided and gathered as well.
        (3, 4, True, 4 * 4 * 1024 + 4 * 4 * 1124, "ZeRO-3 needs 8P"),
    ],
)
def test_between_replicas(level: int, accumulation: int, once: bool, sent: int, name: str) -> None:
    """On four: three quarters of the bytes."""
    layout = Layout(imgsz=64, replicas=4, zero_stage=level, accumulation=accumulation, once=once)
    found = needed([STAGE], layout)
    assert (found.sent, found.layout) == (0.75 * sent, name)


def test_precisions() -> None:
    bf16 = Layout(imgsz=64, replicas=2, precision="bf16")
    assert needed([STAGE], bf16).sent == 0.5 * 2 * 2 * 1024
    # Under autocast the gradients of convolutions have 16 bits, parameters 32.
    cast = Layout(imgsz=64, replicas=2, autocast="bf16")
    assert needed([STAGE], cast).sent == 0.5 * (2 * 1000 + 4 * 24 + 4 * 1024)
    whole = Layout(imgsz=64, replicas=2, zero_stage=0, autocast="bf16")
    assert needed([STAGE], whole).sent == 0.5 * 2 * 4 * 1024


def test_a_pipeline() -> None:
    """Two stages without replicas send only to each other; a rank is one of them."""
    layout = Layout(imgsz=64, cuts=(3,))
    found = needed([STAGE, STAGE], layout, boundaries=600)
    assert (found.sent, found.layout) == (300, "2 stages need")


def test_a_whole_model() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    layout = Layout(imgsz=64, replicas=2)
    assert need_of_whole(net, layout).sent == 0.5 * 2 * 4 * (2 + 2 + 2 + 2)
    # A run that compresses sends less than that, which is no fault of the numbers.
    compressed = need_of_whole(net, layout, compressed=True)
    assert compressed.sent == need_of_whole(net, layout).sent
    assert compressed.layout == "without compression ZeRO-1 needs 2P"


def test_a_model_in_two_stages() -> None:
    small = costs("fp32")
    cut = 5
    layout = Layout(imgsz=64, micro_batch=2, accumulation=3, cuts=(cut,))
    # Activations and gradients of three micro-batches of two images, and headers of the labels.
    both = 2 * 3 * 2 * small.crossing[cut] + 3 * 64 * 8
    assert need_of_stages(small, layout).sent == both / 2
