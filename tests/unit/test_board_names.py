"""In which groups of TensorBoard a curve is found."""

from __future__ import annotations

import pytest

from yolods.stats import LOSS_NAMES, METRIC_NAMES
from yolods.telemetry.board.names import board_tag, image_tag, picture_tag


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("train/box_loss", "Loss/box_train"),
        ("val/box_loss", "Loss/box_val"),
        ("metrics/mAP50-95(B)", "Metrics/mAP50-95"),
        ("metrics/fitness", "Metrics/fitness"),
        ("lr/pg0", "optimizer/lr_pg0"),
        ("optim/grad_norm", "optimizer/grad_norm"),
        ("optim/loss_scale", "stability/loss_scale"),
        ("time/images_per_second", "data/images_per_second"),
        ("epoch", "data/epoch"),
        ("communication/sent_mb", "communication/sent_mb"),
        ("toy", "toy"),
    ],
)
def test_a_curve_is_found_in_its_group(name: str, tag: str) -> None:
    assert board_tag(name) == tag


def test_losses_and_metrics_come_before_all_other_groups() -> None:
    """TensorBoard sorts groups by their characters, and opens the first two."""
    names = [f"{kind}/{name}" for kind in ("train", "val") for name in LOSS_NAMES]
    names += [*METRIC_NAMES, "epoch", "lr/pg0", "communication/x", "ranks/x", "final/x"]
    groups = sorted({board_tag(name).partition("/")[0] for name in names})
    assert groups[:2] == ["Loss", "Metrics"]


def test_only_losses_and_metrics_have_a_curve_over_images() -> None:
    assert image_tag("train/cls_loss") == "by_images/loss_cls_train"
    assert image_tag("metrics/mAP50(B)") == "by_images/mAP50"
    assert image_tag("lr/pg0") is None and image_tag("time") is None


def test_pictures_have_one_group() -> None:
    assert picture_tag("val/batch0_pred") == "images/val_batch0_pred"
