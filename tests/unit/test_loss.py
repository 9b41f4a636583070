"""The loss is ultralytics' own, at the scale at which DeepSpeed's averaging gives ultralytics' gradients."""

from types import SimpleNamespace

import pytest
import torch

from yolods.model.build import architecture, build, parse_name
from yolods.model.loss import DetectionLoss

GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)


def score_by(net, gains, class_weights=None) -> DetectionLoss:
    return DetectionLoss(net.model[-1], torch.device("cpu"), gains, class_weights)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build(architecture(parse_name("yolov5[0.1,0.1]"), 3, 3), ("a", "b", "c"))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "batch_idx": torch.tensor([0.0, 0.0, 1.0, 3.0]),
        "cls": torch.tensor([[0.0], [2.0], [1.0], [1.0]]),
        "bboxes": torch.tensor(
            [[0.3, 0.3, 0.4, 0.3], [0.7, 0.6, 0.5, 0.6], [0.5, 0.5, 0.9, 0.9], [0.2, 0.7, 0.3, 0.3]]
        ),
    }


def predict(net, images=4):
    torch.manual_seed(2)
    return net.train()(torch.rand(images, 3, 64, 64))


def test_items_and_scale_are_those_of_ultralytics(net, batch):
    from ultralytics.utils.loss import v8DetectionLoss

    raw = predict(net)
    loss, items = score_by(net, GAINS)(raw, batch, images=4)
    net.args = GAINS
    theirs, their_items = v8DetectionLoss(net)(raw, batch)  # loss x the images of this batch
    torch.testing.assert_close(loss, theirs.sum())
    torch.testing.assert_close(items, torch.stack(list(their_items.values())))
    assert items.shape == (3,)
    assert not items.requires_grad
    assert loss.requires_grad


def halves(raw, batch):
    """Outputs and targets of the first two images and of the last two."""
    pieces = []
    for first in (0, 2):
        inside = (batch["batch_idx"] >= first) & (batch["batch_idx"] < first + 2)
        half = {key: value[inside] for key, value in batch.items()}
        part = slice(first, first + 2)
        outputs = {"boxes": raw["boxes"][part], "scores": raw["scores"][part]}
        outputs["feats"] = [level[part] for level in raw["feats"]]
        pieces.append((outputs, {**half, "batch_idx": half["batch_idx"] - first}))
    return pieces


def test_the_mean_over_micro_batches_gives_ultralytics_sum(net, batch):
    """Two micro-batches of two images, or two ranks with one each: mean(L x 4) = sum(L x 2)."""
    score = score_by(net, GAINS)
    pieces = halves(predict(net), batch)
    mean = sum(score(outputs, half, images=4)[0] for outputs, half in pieces) / 2
    total = sum(score(outputs, half, images=2)[0] for outputs, half in pieces)
    torch.testing.assert_close(mean, total)


def test_sums_of_the_parts_are_those_of_the_batch_and_give_its_items(net, batch):
    score, raw = score_by(net, GAINS), predict(net)
    *sums, total = score.sums(raw, batch).tolist()
    assert total > 1
    assert [each / total for each in sums] == pytest.approx(score(raw, batch, 1)[1].tolist(), rel=1e-12)
    parts = sum(score.sums(outputs, half) for outputs, half in halves(raw, batch))
    assert parts.tolist() == pytest.approx([*sums, total], rel=1e-6)
    assert not parts.requires_grad


def test_gains_scale_each_item(net, batch):
    raw = predict(net)
    once = score_by(net, GAINS)(raw, batch, 1)[1]
    twice = score_by(net, SimpleNamespace(box=15.0, cls=0.5, dfl=4.5))(raw, batch, 1)[1]
    torch.testing.assert_close(twice / once, torch.tensor([2.0, 1.0, 3.0]))
    assert (once > 0).all()


def test_class_weights_count(net, batch):
    raw = predict(net)
    even = score_by(net, GAINS)(raw, batch, 1)[1]
    weighted = score_by(net, GAINS, torch.tensor([2.0, 0.5, 0.5]))(raw, batch, 1)[1]
    assert weighted[1] != even[1]
    torch.testing.assert_close(weighted[[0, 2]], even[[0, 2]])


def test_bf16_outputs_are_scored_in_fp32(net, batch):
    raw = predict(net)
    low = {key: [x.bfloat16() for x in value] if key == "feats" else value.bfloat16() for key, value in raw.items()}
    score = score_by(net, GAINS)
    loss, items = score(low, batch, 4)
    assert loss.dtype == items.dtype == torch.float32
    torch.testing.assert_close(items, score(raw, batch, 4)[1], rtol=0.02, atol=0.02)


def test_a_batch_without_boxes_has_a_class_loss_only(net):
    empty = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    loss, items = score_by(net, GAINS)(predict(net), empty, 4)
    assert items[0] == items[2] == 0
    assert items[1] > 0
    assert score_by(net, GAINS).sums(predict(net), empty).tolist() == [0, float(items[1]), 0, 0]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
