"""The benchmarks' stand-in for bf16 instructions: the rounding of one sum in fp32, as the
instructions round."""

import sys

import torch

from benchmarks import bf16_products


def test_a_convolution_is_the_one_in_fp32_of_bf16_values_rounded_once():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 9, 9, generator=drawn).bfloat16()
    weight, bias = (
        torch.randn(4, 8, 3, 3, generator=drawn).bfloat16(),
        torch.randn(4, generator=drawn).bfloat16(),
    )
    grad = torch.randn(2, 4, 5, 5, generator=drawn).bfloat16()
    wide = [each.float().requires_grad_() for each in (x, weight, bias)]
    expected = torch.nn.functional.conv2d(*wide, stride=2, padding=1)
    expected.backward(grad.float())

    got = bf16_products.convolution(x, weight, (3, 3), bias, (2, 2), (1, 1))
    grads = bf16_products.convolution_backward(
        grad, x, weight, (3, 3), (2, 2), (1, 1), [True, True, True]
    )

    assert torch.equal(got, expected.bfloat16())
    for each, own in zip(grads, wide, strict=True):
        assert torch.equal(each, own.grad.bfloat16())


def test_convolutions_of_both_types_come_out_the_same_with_it(run_process):
    script = """
import sys

import torch
from benchmarks import bf16_products
torch.set_num_threads(1)
drawn = torch.Generator().manual_seed(0)
def both():
    found = []
    for size in (1, 3):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(2, 8, 9, 9, generator=drawn.manual_seed(1)).to(dtype).requires_grad_()
            weight = torch.randn(4, 8, size, size, generator=drawn.manual_seed(2)).to(dtype).requires_grad_()
            y = torch.nn.functional.conv2d(x, weight)
            y.float().square().sum().backward()
            found.append((y.detach(), x.grad, weight.grad))
    return found
before = both()
bf16_products.use_fp32_products()
for earlier, later in zip(before, both()):
    for a, b in zip(earlier, later):
        near = 0 if a.dtype == torch.float32 else 0.02
        assert a.dtype == b.dtype and (a - b).abs().max() <= near * a.abs().max(), (a - b).abs().max()
"""  # noqa: E501
    ended = run_process([sys.executable, "-c", script])
    assert ended.returncode == 0, ended.stderr
