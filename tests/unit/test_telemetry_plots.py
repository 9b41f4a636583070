"""Pictures are drawn from copies, without the network, and a failing one costs a single warning."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from yolods.telemetry.plots import Painter

NAMES = {0: "disc", 1: "bar"}


def make_batch(images: int = 20, size: int = 64) -> dict[str, object]:
    """`images` grey pictures with one box each in the middle, of class 0 and 1 by turns."""
    return {
        "img": torch.full((images, 3, size, size), 100, dtype=torch.uint8),
        "cls": (torch.arange(images) % 2).float().reshape(-1, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]).repeat(images, 1),
        "batch_idx": torch.arange(images).float(),
        "im_file": [f"some/where/{i}.jpg" for i in range(images)],
    }


def make_predictions(images: int = 20, size: int = 64) -> list[dict[str, torch.Tensor]]:
    good, mirrored, flipped, unsure = (
        [16, 16, 48, 48],
        [40, 20, 20, 40],
        [20, 40, 40, 20],
        [1, 1, 9, 9],
    )
    boxes = torch.tensor([good, mirrored, flipped, [float("nan")] * 4, unsure]) * (size / 64)
    conf, cls = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.1]), torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0])
    return [
        {"bboxes": boxes.clone(), "conf": conf.clone(), "cls": cls.clone()} for _ in range(images)
    ]


@pytest.fixture
def drawn() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
def painter(tmp_path: Path, drawn: list[tuple[str, str, int]]) -> Painter:
    return Painter(tmp_path, NAMES, lambda tag, file, step: drawn.append((tag, file.name, step)))


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Hosts whose address was asked for; every question fails."""
    hosts: list[object] = []

    def refuse(host: object, *rest: object, **options: object) -> None:
        hosts.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return hosts


@pytest.mark.parametrize("kind", ["uint8", "float32 in [0, 1]", "bfloat16 in [0, 1]"])
def test_training_pictures_show_boxes_and_leave_the_batch_alone(
    painter: Painter,
    tmp_path: Path,
    drawn: list[tuple[str, str, int]],
    asked: list[object],
    kind: str,
) -> None:
    batch = make_batch()
    if kind != "uint8":
        batch["img"] = (batch["img"].float() / 255).to(getattr(torch, kind.split()[0]))
    before = {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}
    painter.train_images(batch, 2, step=7)
    painter.close()
    assert drawn == [("train/batch2", "train_batch2.jpg", 7)]
    assert all(torch.equal(batch[key], value) for key, value in before.items())
    picture = pixels(tmp_path / "train_batch2.jpg")
    assert picture.shape == (4 * 64, 4 * 64, 3), "16 of 20 images, 4 by 4"
    assert abs(picture[58, 58] - 100).max() < 12, "the images' grey, away from box and text"
    assert abs(picture[16:48, 17] - 100).max() > 60, "the left side of a box"
    assert asked == []


def test_validation_pictures(
    painter: Painter, tmp_path: Path, drawn: list[tuple[str, str, int]]
) -> None:
    batch, predictions = make_batch(), make_predictions()
    before = [prediction["bboxes"].clone() for prediction in predictions]
    painter.val_images(batch, predictions, 0, step=3)
    painter.close()
    assert drawn == [
        ("val/batch0_labels", "val_batch0_labels.jpg", 3),
        ("val/batch0_pred", "val_batch0_pred.jpg", 3),
    ]
    assert all(
        torch.equal(p["bboxes"].nan_to_num(), b.nan_to_num())
        for p, b in zip(predictions, before, strict=True)
    )
    predicted = pixels(tmp_path / "val_batch0_pred.jpg")
    assert abs(predicted[16:48, 17] - 100).max() > 60, "the left side of the good box"


def test_validation_pictures_without_any_box(painter: Painter, tmp_path: Path) -> None:
    batch = make_batch(2) | {
        "cls": torch.zeros(0, 1),
        "bboxes": torch.zeros(0, 4),
        "batch_idx": torch.zeros(0),
    }
    nothing = {"bboxes": torch.zeros(0, 4), "conf": torch.zeros(0), "cls": torch.zeros(0)}
    painter.val_images(batch, [nothing, nothing], 0, step=3)
    painter.close()
    assert {file.name for file in tmp_path.iterdir()} == {
        "val_batch0_labels.jpg",
        "val_batch0_pred.jpg",
    }


@pytest.mark.slow
def test_labels_and_results_are_drawn(
    painter: Painter, tmp_path: Path, asked: list[object]
) -> None:
    painter.labels(np.array([[0.0, 0.4, 0.4, 0.4, 0.4], [1.0, 0.4, 0.4, 0.4, 0.4]]))
    header = "epoch,time,train/box_loss,metrics/mAP50(B),val/box_loss,lr/pg0"
    (tmp_path / "results.csv").write_text(
        f"{header}\n1,2.5,1.5,nan,nan,0.01\n2,5,1.25,0.5,1.5,0.01\n"
    )
    painter.results()
    painter.close()
    for name in ("labels.jpg", "results.png"):
        assert pixels(tmp_path / name).std() > 5, f"{name} is not blank"
    assert asked == []


def test_a_failing_picture_is_one_warning(
    painter: Painter, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING, logger="yolods"):
        painter.train_images({"img": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, 0, step=0)
        painter.labels(np.zeros((0, 5)))
        painter.results()
        (tmp_path / "train_batch1.jpg").mkdir()
        painter.train_images(make_batch(1), 1, step=0)
        painter.close()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("yolods")]
    assert [message.split(" could not")[0] for message in ours] == [
        "train_batch0.jpg",
        "labels.jpg",
        "results.png",
        "train_batch1.jpg",
    ]
    assert "the training set has no labelled box" in ours[1]
    assert all("\n" not in message for message in ours)


def test_a_picture_that_ultralytics_gives_up_on_quietly_is_noticed(
    painter: Painter, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "labels.jpg").write_text("left by an earlier start")
    with caplog.at_level(logging.WARNING, logger="yolods"):
        painter.labels(np.full((1, 4), 0.4))  # a column is missing
    painter.close()
    assert "labels.jpg could not be written" in caplog.text
    assert not (tmp_path / "labels.jpg").exists(), "an old picture must not pass for this run's"


@pytest.mark.parametrize("names", [{0: "disc"}, {0: "Ampel grün"}, {0: "диск"}])
def test_ultralytics_draws_text_with_a_font_of_this_machine(
    names: dict[int, str], asked: list[object]
) -> None:
    from ultralytics.utils.plotting import Annotator

    from yolods.compat import use_local_font

    use_local_font()
    annotator = Annotator(np.zeros((32, 32, 3), np.uint8), pil=True, example=str(names))
    assert Path(annotator.font.path).is_file()
    assert asked == []


def test_local_font_prefers_the_one_ultralytics_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ultralytics.utils
    from matplotlib import font_manager

    from yolods.compat import local_font

    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(ultralytics.utils, "USER_CONFIG_DIR", tmp_path)
    assert local_font("Arial.ttf").name == "DejaVuSans.ttf"
    (tmp_path / "Arial.ttf").touch()
    assert local_font("Arial.ttf") == tmp_path / "Arial.ttf"
