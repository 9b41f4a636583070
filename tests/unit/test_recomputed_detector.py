"""A detector in segments: the numbers of the whole one, the same names, and a fraction of the
activations."""

from __future__ import annotations

import pytest
import torch

from tests.parity.small import plain_model
from yolods.model.graph.stage import RecomputedDetector

SIZE = 128


def passed(net: torch.nn.Module) -> tuple[dict, int, dict, dict]:
    """Outputs, bytes held for the backward pass when it begins, gradients and BatchNorm's buffers
    after it."""
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(images)
    kept = sum(held.values())
    (out["boxes"].square().mean() + out["scores"].square().mean()).backward()
    gradients = {name: each.grad for name, each in net.named_parameters() if each.grad is not None}
    return out, kept, gradients, dict(net.named_buffers())


@pytest.mark.parametrize("segments", [None, 1, 5, 10**6])
def test_it_computes_what_the_whole_model_does(segments):
    plain = plain_model()
    split = RecomputedDetector(plain, segments).train()
    assert split.state_dict().keys() == plain.state_dict().keys()
    for name, parameter in split.named_parameters():
        parameter.requires_grad = ".dfl" not in name
    out, kept, gradients, buffers = passed(split)
    expected, all_kept, wanted, statistics = passed(plain)
    for key in ("boxes", "scores"):
        assert torch.equal(out[key], expected[key])
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(gradients[name], value, rtol=1e-4, atol=1e-7), name
    for name, value in statistics.items():
        assert torch.equal(buffers[name], value), f"{name}: a micro-batch was counted twice"
    if segments is None:
        assert kept < 0.35 * all_kept, (kept, all_kept)


def test_in_evaluation_the_raw_predictions_stand_in_the_second_place():
    split = RecomputedDetector(plain_model(), None).eval()
    nothing, raw = split(torch.rand(1, 3, SIZE, SIZE))
    assert nothing is None
    assert raw["boxes"].shape[0] == 1


def test_it_says_what_it_keeps():
    assert "5 segments of at most" in str(RecomputedDetector(plain_model(), 5))
