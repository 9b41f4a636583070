"""What stands in for torch's backward pass of a convolution in fp16 is that pass, rounded
otherwise."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from tests.half import _conv2d, _quick_conv2d


@pytest.mark.parametrize(
    ("settings", "bias"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, False),
        ({"kernel_size": 1}, True),
        ({"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2}, True),
    ],
)
def test_gradients_are_those_of_torch(settings: dict[str, int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 6, bias=bias, **settings).half()
    images, found = torch.randn(2, 4, 9, 9).half(), []
    for convolution in (_quick_conv2d, _conv2d):
        layer.zero_grad()
        x = images.clone().requires_grad_()
        with mock.patch.object(F, "conv2d", convolution):
            y = layer(x)
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).half())
        found.append([y, x.grad, *(each.grad for each in layer.parameters())])
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == torch.float16
        torch.testing.assert_close(mine, theirs, rtol=4e-3, atol=4e-3)
    assert torch.equal(found[0][0], found[1][0])


def test_an_infinite_gradient_stays_infinite_and_other_types_are_torchs() -> None:
    layer = torch.nn.Conv2d(1, 1, 1, bias=False).half()
    x = torch.full((1, 1, 2, 2), 60000.0).half().requires_grad_()
    with mock.patch.object(F, "conv2d", _quick_conv2d):
        y = layer(x)
        y.backward(torch.full_like(y, 2.0))
        assert layer.weight.grad.isinf().all() and x.grad.isfinite().all()
        name = layer.float()(x.float()).grad_fn.name()
    assert name == "ConvolutionBackward0"
