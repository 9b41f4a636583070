"""The benchmarks' stand-in for bf16 instructions: the rounding of one sum in fp32, as the instructions round."""

import torch

from benchmarks import bf16_products


def test_a_convolution_is_the_one_in_fp32_of_bf16_values_rounded_once():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 9, 9, generator=drawn).bfloat16()
    weight, bias = torch.randn(4, 8, 3, 3, generator=drawn).bfloat16(), torch.randn(4, generator=drawn).bfloat16()
    grad = torch.randn(2, 4, 5, 5, generator=drawn).bfloat16()
    wide = [each.float().requires_grad_() for each in (x, weight, bias)]
    expected = torch.nn.functional.conv2d(*wide, stride=2, padding=1)
    expected.backward(grad.float())

    got = bf16_products._forward(x, weight, (3, 3), bias, (2, 2), (1, 1))
    grads = bf16_products._backward(grad, x, weight, (3, 3), (2, 2), (1, 1), [True, True, True])

    assert torch.equal(got, expected.bfloat16())
    for each, own in zip(grads, wide, strict=True):
        assert torch.equal(each, own.grad.bfloat16())
