"""What `mosaic_partners=auto` stands for: by the configuration and the images, not by the host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from yolods.config.hyper.hyperparameters import Hyper
from yolods.data import dataset as dataset_module
from yolods.data.augment import partner_choice as module
from yolods.data.augment.partner_choice import (
    KEPT_WHOLE,
    PartnerChoice,
    choose_partners,
    decoded_bytes,
)
from yolods.data.resize import fit

HD = (720, 1280)
FITTING = KEPT_WHOLE // (640 * 360 * 3)
"""Images of 1280x720 pixels that fit at 640."""


def train_of(images: int, shape: tuple[int, int] = HD) -> Any:
    """A split of so many images of one shape."""
    shapes = np.broadcast_to(np.array(shape, np.int32), (images, 2))
    return SimpleNamespace(labels=SimpleNamespace(shapes=shapes), source=None)


def chosen(train: Any, imgsz: int = 640, **hyper: Any) -> PartnerChoice:
    return choose_partners(Hyper(**hyper), train, imgsz, 3)


def test_auto_is_the_default_and_takes_all_as_long_as_the_set_is_kept_decoded():
    found = chosen(train_of(FITTING))
    assert found.partners == "all"
    assert found.lines == [
        "mosaic partners: all, because the decoded set (1024 MiB) fits the 1.0 GiB that auto takes "
        "for a loader process's cache"
    ]


def test_one_image_more_makes_it_block():
    found = chosen(train_of(FITTING + 1))
    assert found.partners == "block"
    assert found.lines == [
        "mosaic partners: block, because the decoded set (1.0 GiB) does not fit the 1.0 GiB that "
        "auto takes for a loader process's cache; with all, each mosaic would decode four images"
    ]


def test_the_size_is_that_of_images_at_training_size():
    """Smaller samples take less room, and a set of small images is enlarged."""
    assert chosen(train_of(FITTING + 1), imgsz=320).partners == "all"
    assert chosen(train_of(FITTING + 1, (90, 160))).partners == "block"


@pytest.mark.parametrize("free", [1 << 20, 1 << 45])
@pytest.mark.parametrize("images", [FITTING, FITTING + 1])
def test_the_memory_of_a_host_does_not_matter(monkeypatch, free, images):
    monkeypatch.setattr(dataset_module, "available_memory", lambda: free)
    assert chosen(train_of(images)).partners == ("all" if images == FITTING else "block")


def test_a_cache_of_everything_makes_it_all():
    found = chosen(train_of(FITTING + 1), cache="ram")
    assert found.lines == [
        "mosaic partners: all, because cache=ram keeps the decoded set (1.0 GiB) in memory"
    ]


def test_a_raw_pack_makes_it_all(monkeypatch):
    monkeypatch.setattr(module, "is_raw_pack", lambda source: source == "raw")
    train = train_of(FITTING + 1)
    assert chosen(train).partners == "block"
    train.source = "raw"
    assert chosen(train).lines == [
        "mosaic partners: all, because images of a raw pack need no decoding"
    ]


@pytest.mark.parametrize(
    ("mixed", "lines"), [("mosaic", 1), ("mixup", 1), ("cutmix", 1), ("copy_paste", 1), ("", 0)]
)
def test_nothing_is_said_where_no_images_are_mixed(mixed, lines):
    found = chosen(train_of(FITTING + 1), **{"mosaic": 0.0} | ({mixed: 0.5} if mixed else {}))
    assert len(found.lines) == lines
    assert found.partners == ("block" if lines else "all")


@pytest.mark.parametrize("named", ["all", "block"])
@pytest.mark.parametrize("images", [1, FITTING + 1])
def test_what_a_user_names_is_taken(named, images):
    assert chosen(train_of(images), mosaic_partners=named) == (named, "")


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_bytes_are_those_of_the_images_themselves(monkeypatch, at_once):
    monkeypatch.setattr(module, "SHAPES_AT_ONCE", at_once)
    shapes = np.random.default_rng(0).integers(10, 90, (30, 2)).astype(np.int32)
    for channels in (1, 3):
        images = [fit(np.zeros((*shape, channels), np.uint8), 61) for shape in shapes.tolist()]
        assert decoded_bytes(shapes, 61, channels) == sum(image.nbytes for image in images)
