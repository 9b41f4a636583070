"""Evaluation is ultralytics' own in its numbers, for any number of ranks."""

import argparse
import json
import shutil
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.fake_detector import ALONE, CPU, HYPER, FakeDetector, evaluator_of, open_val
from tests.far import Far, device, far  # noqa: F401
from tests.tiny import make_dataset
from yolods import compat
from yolods.checkpoint.pt_file import write_pt
from yolods.config import Hyper, add_val_arguments
from yolods.data.loader import eval_batches, eval_loader
from yolods.data.spec import as_ultralytics, read_spec
from yolods.data.splits import Split
from yolods.distributed.world import Ranks
from yolods.errors import UserError
from yolods.evaluation.evaluator import (
    Evaluation,
    Evaluator,
    PlainDetector,
    image_ids,
    log_user_errors,
)
from yolods.evaluation.validate import validate
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.inputs import InputFormat
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.model.weights import read_pt
from yolods.stats import LOSS_NAMES, METRIC_NAMES
from yolods.telemetry import Telemetry

pytestmark = pytest.mark.slow

IMAGES = 37  # groups of 16, 16 and 5: no share of it is even


@dataclass
class Trained:
    """A model that has learnt its own validation images by heart, half-way."""

    yaml: Path
    weights: Path
    split: Split
    names: tuple[str, ...]

    def evaluator(
        self,
        out: Path,
        ranks: Ranks = ALONE,
        hyper: Hyper = HYPER,
        forward_batch: int = 16,
        batch: int = 16,
    ) -> Evaluator:
        split = self.split if batch == 16 else open_val(self.yaml, eval_batch=batch)
        return evaluator_of(split, self.names, out, ranks, hyper, forward_batch)

    def detector(self) -> PlainDetector:
        return PlainDetector(read_pt(self.weights), HYPER, CPU)

    def detector_as_in_training(self) -> PlainDetector:
        """On a CPU ultralytics' trainer takes channels first, so that convolutions add up in
        another order."""
        detector = self.detector()
        detector._inputs = InputFormat(CPU, torch.float32, channels_last=False)
        return detector


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    compat.stand_in_for_torchvision()
    root = tmp_path_factory.mktemp("evaluate")
    yaml = make_dataset(root / "data", train=2, val=IMAGES, nc=3)
    split, names = open_val(yaml), read_spec(yaml).names
    torch.manual_seed(0)
    net = build(architecture(parse_name("yolov5[0.1,0.1]"), len(names), 3), names)
    plain = deepcopy(net)
    _learn(net, split, epochs=12)
    write_pt(
        root / "best.pt",
        plain,
        net.state_dict().items(),
        {"train_args": {"imgsz": 64, "task": "detect"}},
    )
    return Trained(yaml, root / "best.pt", split, names)


def _learn(net, split: Split, epochs: int) -> None:
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3
    score, images = DetectionLoss(net.model[-1], CPU, HYPER), InputFormat(CPU, torch.float32, False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    share = eval_batches(split.dataset, dp_rank=0, dp_size=1, forward_batch=16)
    batches = list(eval_loader(split.dataset, share, workers=0))
    net.train()
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            score(net(images.images(batch["img"])), batch, 1)[0].backward()
            optimizer.step()


@pytest.fixture(scope="module")
def theirs(trained, tmp_path_factory) -> SimpleNamespace:
    return asked_of_ultralytics(trained, tmp_path_factory.mktemp("theirs"), batch=16, plots=True)


def asked_of_ultralytics(
    trained: Trained, folder: Path, batch: int, *, plots: bool = False
) -> SimpleNamespace:
    """What ultralytics' validator says of the same model, as its trainer asks it: metrics, losses
    and details.

    With plots it fills its confusion matrix, here at the confidence that it is made for, 0.25, and
    not at the metrics' 0.001.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.utils.metrics import ConfusionMatrix

    shutil.copytree(trained.yaml.parent, folder / "data")  # it writes beside the labels
    spec = read_spec(folder / "data" / trained.yaml.name)
    net = read_pt(trained.weights)
    net.args = get_cfg()
    settings = {
        "mode": "val",
        "task": "detect",
        "imgsz": 64,
        "batch": batch,
        "workers": 0,
        "plots": plots,
        "rect": True,
    }
    validator = DetectionValidator(save_dir=folder / "theirs", args=settings)
    validator.data, validator.stride, validator.device = as_ultralytics(spec), 32, CPU
    validator.dataloader = validator.get_dataloader(str(spec.val[0]), batch)
    trainer = SimpleNamespace(
        device=CPU,
        data=validator.data,
        amp=False,
        loss_items={name: torch.zeros(()) for name in LOSS_NAMES},
        stopper=SimpleNamespace(possible_stop=True),
        epoch=0,
        epochs=1,
        ema=SimpleNamespace(ema=net),
        world_size=1,
        label_loss_items=lambda loss, prefix: {
            f"{prefix}/{name}": value for name, value in loss.items()
        },
    )
    count = ConfusionMatrix.process_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ConfusionMatrix,
            "process_batch",
            lambda self, found, batch, conf: count(self, found, batch),
        )
        results = validator(trainer=trainer)
    return SimpleNamespace(
        loss={name: results[f"val/{name}"] for name in LOSS_NAMES},
        metrics=dict(zip(METRIC_NAMES, validator.metrics.mean_results(), strict=True)),
        details=validator.metrics,
        confusion=validator.confusion_matrix.matrix,
        fitness=results["fitness"],
    )


def test_metrics_losses_and_curves_are_ultralytics(trained, theirs, tmp_path):
    ours = trained.evaluator(tmp_path)(trained.detector_as_in_training())
    assert 0.05 < ours.metrics["metrics/mAP50-95(B)"] < 0.9
    assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-6)
    assert ours.fitness == pytest.approx(theirs.fitness, abs=1e-5)  # it rounds to five decimals
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
    assert ours.images == IMAGES
    np.testing.assert_allclose(ours.details.box.all_ap, theirs.details.box.all_ap, atol=1e-6)
    np.testing.assert_allclose(ours.details.box.f1_curve, theirs.details.box.f1_curve, atol=1e-6)
    for row in range(3):
        assert ours.details.class_result(row) == pytest.approx(
            theirs.details.class_result(row), abs=1e-6
        )


@pytest.mark.parametrize("batch", [1, 16, 32])
def test_metrics_and_losses_are_ultralytics_in_batches_of_any_size(trained, tmp_path, batch):
    theirs = asked_of_ultralytics(trained, tmp_path, batch)
    ours = trained.evaluator(tmp_path, forward_batch=batch, batch=batch)(
        trained.detector_as_in_training()
    )
    assert ours.metrics == theirs.metrics
    assert ours.loss == pytest.approx(theirs.loss, abs=6e-6)  # it rounds to five decimals


@pytest.mark.parametrize("batch", [1, 16, 32])
def test_a_loaded_pt_gets_the_same_from_yolo_val(trained, tmp_path, batch):
    """The way users ask. Weights are fused for inference in both."""
    from ultralytics import YOLO

    shutil.copytree(trained.yaml.parent, tmp_path / "data")
    theirs = YOLO(str(trained.weights)).val(
        data=str(tmp_path / "data" / trained.yaml.name),
        imgsz=64,
        batch=batch,
        workers=0,
        project=str(tmp_path),
        plots=False,
    )
    words = [
        "--weights",
        str(trained.weights),
        "--data",
        str(trained.yaml),
        "--project",
        str(tmp_path),
    ]
    ours = val(
        *words, *(["--batch-size", str(batch)] if batch != 16 else []), "--set", "plots=False"
    )
    assert list(ours.metrics.values()) == list(theirs.mean_results())


def val(*words: str) -> Evaluation:
    parser = argparse.ArgumentParser()
    add_val_arguments(parser)
    return validate(parser.parse_args(words), ALONE)


class Simulated:
    """One rank of several, run one after the other in this process: the last to come is rank 0,
    which adds up."""

    def __init__(self, rank: int, size: int, box: dict) -> None:
        self.rank, self.size, self.device, self.is_main, self._box = rank, size, CPU, rank == 0, box

    def to_main(self, value):
        self._box[self.rank] = value
        return [self._box[rank] for rank in range(self.size)] if self.is_main else []

    def from_main(self, value):
        return value


def over_ranks(trained, size: int, out: Path, batch: int = 16, **options):
    box: dict = {}
    for rank in reversed(range(size)):
        evaluator = trained.evaluator(out, Simulated(rank, size, box), forward_batch=4, batch=batch)
        result = evaluator(trained.detector(), **options)
        assert (result is None) == (rank > 0)
    return result, box


def test_any_number_of_ranks_gives_the_same(trained, tmp_path):
    results = {
        size: over_ranks(trained, size, tmp_path, boxes_to=tmp_path / f"{size}.json")
        for size in (1, 2, 3)
    }
    alone, _ = results[1]
    for size in (2, 3):
        result, tallies = results[size]
        counted = Counter(record["index"] for tally in tallies.values() for record in tally.records)
        assert counted == Counter(range(IMAGES))
        assert result.images == IMAGES
        assert result.metrics == pytest.approx(alone.metrics, abs=1e-9)
        assert result.fitness == pytest.approx(alone.fitness, abs=1e-9)
        assert result.loss == pytest.approx(alone.loss, rel=1e-5)
        np.testing.assert_allclose(result.details.box.all_ap, alone.details.box.all_ap, atol=1e-9)
        assert (tmp_path / f"{size}.json").read_text() == (tmp_path / "1.json").read_text()


@pytest.mark.parametrize("batch", [16, 32])
def test_losses_depend_neither_on_ranks_nor_on_the_pieces_of_a_batch(trained, tmp_path, batch):
    alone, two, three = (over_ranks(trained, size, tmp_path, batch)[0].loss for size in (1, 2, 3))
    assert alone == two == three
    whole = trained.evaluator(tmp_path, forward_batch=batch, batch=batch)(trained.detector())
    assert alone == pytest.approx(whole.loss, rel=1e-6)


def test_confusion_matrices_of_all_ranks_are_added(trained, theirs, tmp_path):
    _, tallies = over_ranks(trained, 3, tmp_path, plots=True)
    assert all(tally.confusion.sum() > 0 for tally in tallies.values())
    np.testing.assert_array_equal(
        sum(tally.confusion for tally in tallies.values()), theirs.confusion
    )
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 1000


def test_the_confusion_matrix_shows_what_is_found_and_not_what_is_guessed(
    trained, tmp_path, monkeypatch
):
    """At 0.001 there were 1,825 guesses of background beside 61 boxes that were right."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)  # takes seconds

    def confusion(hyper: Hyper) -> np.ndarray:
        box: dict = {}
        trained.evaluator(tmp_path, Simulated(0, 1, box), hyper)(trained.detector(), plots=True)
        return box[0].confusion

    matrix = confusion(HYPER)
    assert matrix[:3, 3].sum() < np.trace(matrix)
    assert confusion(replace(HYPER, conf=0.001))[:3, 3].sum() > 10 * matrix[:3, 3].sum()


def test_pictures_of_equal_names_have_image_ids_of_their_own():
    files = [
        "/d/a/1.jpg",
        "/d/b/1.jpg",
        "/d/b/01.jpg",
        "/d/a/7.jpg",
        "/d/a/x.jpg",
        "/d/a/x.png",
        "/d/y.jpg",
    ]
    assert image_ids(files) == {
        "/d/a/1.jpg": "a/1.jpg",
        "/d/b/1.jpg": "b/1.jpg",
        "/d/b/01.jpg": "b/01.jpg",
        "/d/a/7.jpg": 7,
        "/d/a/x.jpg": "a/x.jpg",
        "/d/a/x.png": "a/x.png",
        "/d/y.jpg": "y",
    }
    tricky = ["/d/a.jpg", "/d/a.png", "/d/a.jpg.png"]
    assert len({*image_ids(tricky).values()}) == 3
    assert image_ids([]) == {}


def test_boxes_of_pictures_of_equal_names_can_be_told_apart(tmp_path):
    yaml = make_dataset(tmp_path, train=2, val=3)
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        (tmp_path / kind / "val/more").mkdir()
        (tmp_path / kind / f"val/000.{suffix}").rename(tmp_path / kind / f"val/more/001.{suffix}")
    split = open_val(yaml)
    evaluator = evaluator_of(split, ("a", "b"), tmp_path)
    net = build(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"))
    evaluator(PlainDetector(net, HYPER, CPU), boxes_to=tmp_path / "boxes.json")
    named = {box["image_id"] for box in json.loads((tmp_path / "boxes.json").read_text())}
    assert named == {"001.jpg", "more/001.jpg", 2}


def test_every_rank_calls_the_model_equally_often(trained, tmp_path):
    """Under ZeRO-3 a forward pass is a collective: one rank that calls once less leaves the others
    waiting."""
    calls = []
    for rank in range(3):
        evaluator = trained.evaluator(
            tmp_path, Simulated(rank, 3, {1: None, 2: None}), forward_batch=16
        )
        calls.append(len(evaluator._batches))
    assert calls == [1, 1, 1]
    calls = [len(trained.evaluator(tmp_path, Simulated(rank, 2, {}))._batches) for rank in range(2)]
    assert calls == [2, 2]


def test_plots_are_drawn_where_asked_for(trained, tmp_path):
    drawn = {"confusion_matrix.png", "confusion_matrix_normalized.png"}
    drawn |= {f"Box{kind}_curve.png" for kind in ("F1", "PR", "P", "R")}
    trained.evaluator(tmp_path / "plain")(trained.detector())
    assert not any((tmp_path / "plain").glob("*.png"))
    (tmp_path / "drawn").mkdir()
    trained.evaluator(tmp_path / "drawn")(trained.detector(), plots=True)
    assert {file.name for file in (tmp_path / "drawn").iterdir()} == drawn


def test_pictures_and_progress_reach_telemetry(trained, tmp_path):
    told = Counter()

    class Ear(Telemetry):
        def val_begin(self, batches):
            told["batches"] = batches

        def val_progress(self, batches=1):
            told["progress"] += batches

        def val_images(self, batch, predictions, k):
            assert len(predictions) == batch["real"] == len(batch["img"])
            told["pictures"] += 1

        def val_end(self, metrics, images, *, final=False):
            told["images"] = images

    trained.evaluator(tmp_path)(trained.detector(), telemetry=Ear())
    assert told == {"batches": 3, "progress": 3, "images": IMAGES}
    trained.evaluator(tmp_path)(trained.detector(), pictures=True, telemetry=Ear())
    assert told["pictures"] == 3


@pytest.mark.parametrize(("rank", "said"), [(0, []), (1, ["a loader died"])])
def test_what_ends_one_rank_alone_is_said_there(caplog, rank, said):
    """The command line shows what rank 0 raises; this it would never hear of."""

    def batches():
        yield {"a": 1}
        raise UserError("a loader died")

    passed = log_user_errors(batches(), Ranks(rank, 2, rank, "here", CPU))
    assert next(passed) == {"a": 1}
    with pytest.raises(UserError, match="a loader died"):
        next(passed)
    assert [record.message for record in caplog.records] == said


class Distant(FakeDetector):
    """On a GPU that is none."""

    def predict(self, images):
        decoded, raw = super().predict(images)
        return far(decoded), raw

    def score(self, raw, batch):
        return far(super().score(raw, batch))


def test_a_batch_waits_once_for_the_device_whatever_is_found(trained, tmp_path, device):  # noqa: F811
    """Boxes are suppressed on the host: on a device that would wait for every image, several
    times."""
    evaluator, near = (
        trained.evaluator(tmp_path / name, forward_batch=4) for name in ("far", "near")
    )
    share = eval_batches(trained.split.dataset, dp_rank=0, dp_size=1, forward_batch=4)
    found = evaluator(Distant(trained.split.dataset, share, len(trained.names)))
    assert (device.blocking, device.under_way, device.waits) == (0, 0, len(share))
    assert (
        found.metrics
        == near(FakeDetector(trained.split.dataset, share, len(trained.names))).metrics
    )
    assert found.metrics["metrics/mAP50(B)"] > 0.3
