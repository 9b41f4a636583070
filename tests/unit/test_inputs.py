"""How images reach a model."""

import pytest
import torch
import torch.nn.functional as F

from yolods.model.inputs import InputFormat

CPU = torch.device("cpu")


@pytest.fixture
def batch():
    return torch.randint(
        0, 256, (2, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("channels_last", [True, False])
def test_bytes_become_parts_of_one(batch, channels_last):
    images = InputFormat(CPU, torch.float32, channels_last).images(batch)
    torch.testing.assert_close(images, batch.float() / 255, rtol=0, atol=0)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert batch.dtype == torch.uint8


def test_low_precision_is_rounded_once(batch):
    images = InputFormat(CPU, torch.bfloat16, True).images(batch)
    assert torch.equal(images, (batch.float() / 255).bfloat16())


def test_multi_scale_stretches_as_ultralytics_does(batch):
    square = batch[..., :32]
    images = InputFormat(CPU, torch.float32, False).images(square, size=48)
    expected = F.interpolate(
        square.float() / 255, size=(48, 48), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(images, expected)
    assert InputFormat(CPU, torch.float32, False).images(square, size=32).shape == (2, 3, 32, 32)
