"""Boxes per training sample, from labels."""

from __future__ import annotations

import numpy as np
import pytest

from yolods.plan.memory.boxes import BoxCounts, box_counts


def test_without_mosaic_the_samples_are_the_images() -> None:
    counts = box_counts(np.array([1, 3, 0, 4]), np.full(8, 0.25), mosaic=0)
    assert (counts.mean, counts.most) == (2.0, 4)
    assert counts.areas == pytest.approx([0.25] * 8)


def test_a_mosaic_holds_the_boxes_of_four_images() -> None:
    counts = box_counts(np.array([2, 2, 2]), np.full(6, 0.1))
    assert (counts.mean, counts.most) == (8.0, 8)


def test_the_areas_keep_their_mean() -> None:
    areas = np.random.default_rng(0).random(1600) ** 3
    counts = box_counts(np.array([1600]), areas)
    assert len(counts.areas) == 16
    assert np.mean(counts.areas) == pytest.approx(areas.mean())


def test_a_set_without_boxes() -> None:
    assert box_counts(np.zeros(3, int), np.zeros(0)) == BoxCounts(0.0, 0)


def test_a_full_micro_batch_has_one_fullest_image() -> None:
    assert BoxCounts(2.5, 10).in_batch(5) == 20
