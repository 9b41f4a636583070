"""Our decoding of raw outputs is the Detect head's own."""

import pytest
import torch

from yolods.compat import skip_own_decoding
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.decode import decode
from yolods.model.loss.detection_loss import as_float


@pytest.fixture(scope="module", params=["yolov5[0.1,0.1]", "yolov5[0.1,0.1]6"])
def head(request):
    torch.manual_seed(0)
    head = build(architecture(parse_name(request.param), 5, 3), tuple("abcde")).eval().model[-1]
    for branch in head.cv2:  # away from the flat distributions of fresh weights
        torch.nn.init.normal_(branch[-1].weight, std=2.0)
    return head


def outputs(head, height, width):
    """What the head makes of noise: its decoded boxes and scores, and the raw values."""
    torch.manual_seed(1)
    feats = [
        torch.randn(3, branch[0].conv.in_channels, height // int(stride), width // int(stride)) * 3
        for branch, stride in zip(head.cv2, head.stride, strict=True)
    ]
    with torch.no_grad():
        return head(feats)


@pytest.mark.parametrize("size", [(64, 64), (64, 192)])
def test_boxes_and_scores_are_those_of_the_head_in_fp32(head, size):
    expected, raw = outputs(head, *size)
    result = decode(raw, head.stride.tolist(), head.reg_max)
    assert result.dtype == torch.float32
    assert result.shape == expected.shape
    longest = 15 * float(head.stride.max())  # pixels; centres are differences of such distances
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=2e-7 * longest)
    assert result[:, 2:4].std() > 5


def test_rounded_outputs_lose_nothing_more(head):
    """In bf16, as the head would decode them, coordinates near 190 pixels are a pixel apart."""
    _, raw = outputs(head, 192, 192)
    low = {
        key: [x.bfloat16() for x in value] if key == "feats" else value.bfloat16()
        for key, value in raw.items()
    }
    result = decode(as_float(low), head.stride.tolist(), head.reg_max)
    exact = {
        "boxes": low["boxes"].double(),
        "scores": low["scores"].double(),
        "feats": raw["feats"],
    }
    bins = torch.arange(16, dtype=torch.float64)
    distances = (exact["boxes"].view(3, 4, 16, -1).softmax(2) * bins[:, None]).sum(2)
    cells = [level.shape[2] * level.shape[3] for level in raw["feats"]]
    strides = torch.repeat_interleave(head.stride, torch.tensor(cells))
    torch.testing.assert_close(
        result[:, 2:4].double(),
        (distances[:, :2] + distances[:, 2:]) * strides,
        rtol=1e-5,
        atol=1e-4,
    )
    torch.testing.assert_close(
        result[:, 4:].double(), exact["scores"].sigmoid(), rtol=1e-5, atol=1e-6
    )


def test_the_heads_weights_are_not_read(head):
    """ZeRO-3 keeps them partitioned outside a forward pass."""
    _, raw = outputs(head, 64, 64)
    expected = decode(raw, head.stride.tolist(), 16)
    bins = head.dfl.conv.weight
    kept = bins.detach().clone()
    with torch.no_grad():
        bins.zero_()
        assert torch.equal(decode(raw, head.stride.tolist(), 16), expected)
        bins.copy_(kept)


def test_of_a_shape_seen_before_nothing_is_made_on_the_host_and_no_value_is_read(head):
    """On a device each of both would be a wait. Meta tensors have no values, and mix with none on
    the host."""
    from torch.overrides import TorchFunctionMode

    class OnMeta(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                assert result.device.type == "meta", func
            return result

    _, raw = outputs(head, 64, 128)
    far = {
        "boxes": raw["boxes"].to("meta"),
        "scores": raw["scores"].to("meta"),
        "feats": [level.to("meta") for level in raw["feats"]],
    }
    strides = head.stride.tolist()
    decode(
        far, strides, head.reg_max
    )  # anchors are made on the host once per shape, and sent without a wait
    with OnMeta():
        decoded = decode(far, strides, head.reg_max)
    assert decoded.shape == decode(raw, strides, head.reg_max).shape


def test_a_head_whose_own_decoding_is_not_used_gives_the_same_raw_outputs(head, monkeypatch):
    _, raw = outputs(head, 64, 64)
    monkeypatch.setattr(head, "_inference", None)  # so that what is set now is taken back
    skip_own_decoding(head)
    nothing, same = outputs(head, 64, 64)
    assert nothing is None
    assert torch.equal(same["boxes"], raw["boxes"]) and torch.equal(same["scores"], raw["scores"])
