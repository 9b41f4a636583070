"""Exchanged layers compute what ultralytics' own would."""

import pytest
import torch
from torch import nn

from yolods.model import layers
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.layers import (
    BatchNormFloat32,
    PointwiseConv,
    SyncBatchNormFloat32,
    exchange_layers,
)


def pair(kind, *arguments, **options):
    """A layer of torch and its exchanged twin, with the same weights."""
    torch.manual_seed(0)
    plain = (
        nn.Conv2d(*arguments, **options)
        if kind is PointwiseConv
        else nn.BatchNorm2d(*arguments, **options)
    )
    twin = kind(*arguments, **options)
    twin.load_state_dict(plain.state_dict())
    return plain, twin


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_values_and_gradients_are_those_of_a_convolution(bias):
    plain, twin = pair(PointwiseConv, 6, 10, 1, bias=bias)
    images = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(x) for layer, x in zip((plain, twin), inputs, strict=True)]
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for one, other in zip(twin.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)


def test_bf16_batchnorm_is_fp32_batchnorm_rounded_once():
    plain, twin = pair(BatchNormFloat32, 8, eps=1e-3, momentum=0.03)
    with torch.no_grad():
        for layer in (plain, twin):
            layer.weight.copy_(torch.linspace(0.5, 2.0, 8))
            layer.bias.copy_(torch.linspace(-1.0, 1.0, 8))
    twin.weight.data, twin.bias.data = twin.weight.data.bfloat16(), twin.bias.data.bfloat16()
    plain.weight.data, plain.bias.data = twin.weight.data.float(), twin.bias.data.float()
    low = (torch.randn(4, 8, 6, 6) * 3 + 5).bfloat16()
    inputs = low.clone().requires_grad_(), low.float().requires_grad_()
    outputs = twin(inputs[0]), plain(inputs[1])
    assert outputs[0].dtype == torch.bfloat16
    # One rounding to 8 bits is off by up to 2^-9 of a value, two by twice that; three and the sum
    # would show.
    torch.testing.assert_close(outputs[0].float(), outputs[1], rtol=2**-8, atol=2**-8)
    weights = torch.randn(4, 8, 6, 6)
    (outputs[0].float() * weights).sum().backward()
    (outputs[1] * weights).sum().backward()
    torch.testing.assert_close(twin.weight.grad.float(), plain.weight.grad, rtol=0.02, atol=0.5)
    torch.testing.assert_close(inputs[0].grad.float(), inputs[1].grad, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_statistics_stay_fp32_and_are_those_of_fp32(dtype):
    plain, twin = pair(BatchNormFloat32, 8, momentum=0.03)
    twin.weight.data, twin.bias.data = twin.weight.data.to(dtype), twin.bias.data.to(dtype)
    for step in range(20):
        images = (torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(step)) + 100).to(
            dtype
        )
        twin(images)
        plain(images.float())
    for name in ("running_mean", "running_var"):
        value = getattr(twin, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, getattr(plain, name), rtol=1e-5, atol=1e-5)
    # With momentum 0.03 bf16 statistics would stand still: 0.03 of the distance is below half a
    # step of theirs.
    assert 40 < twin.running_mean.mean() < 50


def test_in_evaluation_mode_statistics_are_used_and_left_alone():
    plain, twin = pair(BatchNormFloat32, 8)
    for layer in (plain, twin):
        layer.running_mean.fill_(2.0)
        layer.running_var.fill_(4.0)
        layer.eval()
    images = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(twin(images), plain(images))
    assert torch.equal(twin.running_mean, torch.full((8,), 2.0))


def test_without_other_processes_sync_batchnorm_is_batchnorm():
    plain, twin = pair(SyncBatchNormFloat32, 8, momentum=0.03)
    images = torch.randn(4, 8, 6, 6)
    torch.testing.assert_close(twin(images), plain(images))
    torch.testing.assert_close(twin.running_var, plain.running_var)


@pytest.fixture
def among_one(monkeypatch):
    """Ranks have met, and this one is all of them."""
    monkeypatch.setattr(layers.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(layers, "all_reduce", lambda sums, group: sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sync_batchnorm_keeps_its_input_for_the_backward_pass_and_no_fp32_copy(among_one, dtype):
    layer = SyncBatchNormFloat32(8)
    images = torch.randn(4, 8, 6, 6).to(dtype)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(images.requires_grad_())
    assert sum(kept.values()) < 1.2 * images.nbytes


def test_gradients_of_sync_batchnorm_are_those_of_batchnorm(among_one):
    plain, twin = pair(SyncBatchNormFloat32, 8, momentum=0.03)
    with torch.no_grad():
        for layer in (plain, twin):
            layer.weight.copy_(torch.linspace(0.5, 2.0, 8))
            layer.bias.copy_(torch.linspace(-1.0, 1.0, 8))
    images = torch.randn(4, 8, 6, 6) * 3 + 5
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    weights = torch.randn(4, 8, 6, 6)
    for layer, x in zip((plain, twin), inputs, strict=True):
        (layer(x) * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(twin.bias.grad, plain.bias.grad)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"))


def kinds(net):
    return {type(module) for module in net.modules()}


@pytest.mark.parametrize(
    ("options", "norm", "pointwise"),
    [
        ({"low_precision": False, "sync_bn": False, "pointwise": False}, nn.BatchNorm2d, False),
        ({"low_precision": True, "sync_bn": False, "pointwise": False}, BatchNormFloat32, False),
        ({"low_precision": False, "sync_bn": True, "pointwise": True}, SyncBatchNormFloat32, True),
        ({"low_precision": True, "sync_bn": True, "pointwise": False}, SyncBatchNormFloat32, False),
    ],
)
def test_which_layers_are_exchanged(net, options, norm, pointwise):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    exchange_layers(net, **options)
    norms = {nn.BatchNorm2d, BatchNormFloat32, SyncBatchNormFloat32}
    assert kinds(net) & norms == {norm}
    assert (PointwiseConv in kinds(net)) == pointwise
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert before.keys() == net.state_dict().keys()


def test_only_plain_1x1_convolutions_become_products(net):
    exchange_layers(net, low_precision=False, sync_bn=False, pointwise=True)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
            assert isinstance(module, PointwiseConv) == plain
    assert sum(type(module) is nn.Conv2d for module in net.modules()) > 10


def test_a_model_with_exchanged_layers_gives_the_same_predictions(net):
    images = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    net.train()
    expected = net(images)
    exchange_layers(net, low_precision=True, sync_bn=False, pointwise=True)
    result = net(images)
    for key in ("boxes", "scores"):
        torch.testing.assert_close(result[key], expected[key], rtol=1e-4, atol=1e-4)
