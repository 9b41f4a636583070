"""The loss has ultralytics' numbers, at the scale at which DeepSpeed's averaging gives ultralytics'
gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.loss import CLOSE, Compared, Peaks, Times, misses, peaks
from benchmarks.loss_batches import (
    CPU,
    Apart,
    Sample,
    Theirs,
    compare,
    draw,
    head_of,
    labels,
    ours,
    outputs,
    plain,
)
from benchmarks.loss_memory import LiveBytes
from yolods.device.packed_copy import pack, send, unpack
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.loss import assigner
from yolods.model.loss import detection_loss as loss_module
from yolods.model.loss.detection_loss import DetectionLoss

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
    assert [each / total for each in sums] == pytest.approx(
        score(raw, batch, 1)[1].tolist(), rel=1e-12
    )
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
    low = {
        key: [x.bfloat16() for x in value] if key == "feats" else value.bfloat16()
        for key, value in raw.items()
    }
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


# ---- bit by bit


@pytest.mark.parametrize("seed", range(0, 500, 20))
def test_a_random_batch_gives_ultralytics_bits(seed):
    """A short form of `python benchmarks/loss.py`, which takes 500."""
    sample = draw(seed)
    assert compare(sample) == Apart(0, 0, 0)
    apart = compare(sample, exact=False)
    assert (apart.boxes, apart.scores) == (0, 0)
    assert apart.items < CLOSE


@pytest.mark.parametrize(
    ("bins", "strides"), [(1, (8, 16, 32)), (16, (8, 16, 32, 64)), (8, (16,)), (1, (8, 32))]
)
def test_heads_of_other_bins_and_levels_give_ultralytics_bits(bins, strides):
    torch.manual_seed(bins)
    predictions = outputs(2, 3, (128, 192), bins=bins, strides=strides)
    sample = Sample("mixed", predictions, labels([9, 4], 3, plain), None, head_of(3, bins, strides))
    assert compare(sample) == Apart(0, 0, 0)


def test_pieces_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(assigner, "PAIRS", 64)
    monkeypatch.setattr(assigner, "CELLS", 1000)
    monkeypatch.setattr(loss_module, "SCORES", 64)
    for seed in (5, 6, 15, 25):
        sample = draw(seed)
        slots = sample.predictions["scores"][:, 0].numel()
        assert ours_targets(sample).pairs > 2 * slots, "one piece would do"
        assert compare(sample) == Apart(0, 0, 0)


def ours_targets(sample):
    classes = sample.predictions["scores"].shape[1]
    return loss_module.targets_of(sample.batch, anchors_of(sample), 16.0, classes, CPU)


@pytest.mark.parametrize("exact", [True, False])
def test_an_anchor_that_several_boxes_want_goes_where_ultralytics_puts_it(exact):
    """Equal outputs everywhere: metrics are equal too, and zero where boxes miss, so that only
    order decides."""
    predictions = outputs(1, 2, (64, 64))
    predictions = {
        **predictions,
        **{key: torch.zeros_like(predictions[key]) for key in ("boxes", "scores")},
    }
    for key in ("boxes", "scores"):
        predictions[key].requires_grad_()
    area = torch.tensor(
        [[0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.9, 0.9], [0.4, 0.4, 0.1, 0.1], [0.45, 0.4, 0.02, 0.9]]
    )
    batch = labels([4], 2, lambda count: area[:count])
    apart = compare(Sample("ties", predictions, batch, None, head_of(2)), exact=exact)
    assert apart.worst < (1e-30 if exact else CLOSE)


def test_outputs_that_are_no_numbers_make_a_loss_that_is_none():
    for key in ("boxes", "scores"):
        sample = draw(5)
        with torch.no_grad():
            sample.predictions[key].fill_(float("nan"))
        for exact in (True, False):
            loss, _ = ours(sample.head, exact=exact)(sample.predictions, sample.batch, 1)
            assert loss.isnan()
            loss.backward()


def test_labels_on_a_device_are_refused(net, batch):
    away = {key: value.to("meta") for key, value in batch.items()}
    with pytest.raises(ValueError, match="labels must be on the host"):
        score_by(net, GAINS)(predict(net), away, 4)


def test_a_class_that_the_head_does_not_know_is_refused(net, batch):
    foreign = {**batch, "cls": batch["cls"] + 80}
    with pytest.raises(ValueError, match=r"a label has class \d+, but the head has"):
        score_by(net, GAINS)(predict(net), foreign, 4)


# ---- without waiting


class Waits(TorchDispatchMode):
    """Operations whose result's size, or whose value on the host, only a device would know."""

    ASKING = (
        "nonzero",
        "_local_scalar_dense",
        "masked_select",
        "unique",
        "equal",
        "item",
        "repeat_interleave",
    )

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[-1]
        by_mask = name.startswith("index") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8)
            for part in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if by_mask or any(word in name for word in self.ASKING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits_of(work) -> list[str]:
    with Waits() as waits:
        work().backward()
    return waits.found


@pytest.mark.parametrize("seed", [1, 5, 8, 13])
def test_nothing_is_asked_of_a_device(seed, monkeypatch):
    sample = draw(seed)
    score = ours(sample.head, sample.weights, exact=False)
    score(sample.predictions, sample.batch, 1)  # constants of this shape are made
    ready = ours_targets(sample)
    monkeypatch.setattr(
        loss_module, "targets_of", lambda *_: ready
    )  # on the host there is no waiting
    assert waits_of(lambda: score(sample.predictions, sample.batch, 1)[0]) == []


def anchors_of(sample):
    shapes = tuple(tuple(level.shape[2:]) for level in sample.predictions["feats"])
    return loss_module.anchors_of(shapes, tuple(sample.head.stride.tolist()), CPU)


def test_the_waits_of_ultralytics_loss_are_seen():
    sample = draw(5)
    assert len(waits_of(lambda: Theirs(sample.head)(sample.predictions, sample.batch).sum())) >= 3
    assert "nonzero" in waits_of(
        lambda: ours(sample.head, exact=True)(sample.predictions, sample.batch, 1)[0]
    )


def test_a_parcel_brings_what_was_packed():
    tensors = [
        torch.arange(7),
        torch.randint(9, (2, 3)),
        torch.rand(4, 5).t(),
        torch.empty(0),
        torch.rand(3),
    ]
    for arrived, tensor in zip(unpack(pack(tensors, pinned=False), tensors), tensors, strict=True):
        assert arrived.equal(tensor)
        assert arrived.dtype == tensor.dtype
    assert [each.shape for each in send(tensors, torch.device("meta"))] == [
        each.shape for each in tensors
    ]


# ---- in less room


def test_the_burst_is_at_most_half_of_ultralytics_at_a_hundred_boxes():
    found = peaks(100, images=1)
    for other, mine in (found.assignment, found.loss):
        assert 0 < mine <= other / 2


def test_bytes_are_counted_while_they_are_alive():
    before = torch.zeros(50)
    with LiveBytes() as bytes_:
        bytes_.leave_out([before])
        before.add_(1)
        first = torch.zeros(100)
        second = first + 1
        view = second.view(10, 10)
        assert (bytes_.now, bytes_.peak) == (800, 800)
        del first, second
        assert (bytes_.now, bytes_.peak) == (400, 800)
        del view
    assert bytes_.now == 0


def test_what_misses_a_target_is_named():
    same, off, far = Apart(0, 0, 0), Apart(0, 1e-9, 0), Apart(2e-6, 0, 0)
    assert (
        misses(
            [Compared("mixed", 3, same, off)],
            [Peaks(100, (4, 2), (4, 2))],
            [Times(64, 5, [2, 2], [1, 2])],
        )
        == []
    )
    assert (
        len(misses([Compared("mixed", 3, off, off), Compared("mixed", 3, same, far)], [], [])) == 2
    )
    assert len(misses([], [Peaks(100, (4, 2.1), (4, 2)), Peaks(10, (4, 3), (4, 5))], [])) == 2
    assert len(misses([], [], [Times(64, 5, [1, 2, 1], [2, 1, 2])])) == 1
