"""Labels that count from 0 or from 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.data.video.labels.label_files import LabelFiles
from yolods.data.video.labels.numbering import first_number
from yolods.errors import UserError

FRAMES = 10


def first(numbers, *, layout="folder", base=None) -> int:
    labels = LabelFiles(Path("clip.mp4"), layout, Path("labels"))
    return first_number(labels, numbers, FRAMES, base)


def fault(numbers, **settings) -> str:
    with pytest.raises(UserError) as caught:
        first(numbers, **settings)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["folder", "beside"])
def test_numbers_prove_their_base(layout):
    assert first([0, 4], layout=layout) == 0
    assert first([1, 10], layout=layout) == 1
    assert fault([1, 9], layout=layout) == (
        "labels: the labels are numbered 1 to 9, and clip.mp4 has 10 frames: they may count from 0 "
        "or from 1; write `base: 0` or `base: 1` into the data yaml"
    )


def test_the_base_of_the_yaml_and_of_the_layout():
    assert (first([1, 9], base=0), first([1, 9], base=1)) == (0, 1)
    assert (first([1, 9], layout="cvat"), first([1, 9], layout="sequence")) == (0, 1)
    assert first([0, 9], layout="sequence", base=0) == 0


def test_a_contradiction_is_refused():
    assert fault([0, 3], base=1) == (
        "labels: has a label of frame 0, but `base: 1` counts from 1; write `base: 0` if it counts "
        "from 0"
    )
    assert "but a MOT or VisDrone text counts from 1" in fault([0, 3], layout="sequence")


@pytest.mark.parametrize(
    ("numbers", "settings", "said"),
    [
        ([0, 10, 11, 12, 14], {}, "labels frame 10-12, 14, but clip.mp4 has 10 frames (0 to 9)"),
        ([1, 11], {}, "labels frame 11, but clip.mp4 has 10 frames (1 to 10)"),
        ([10], {"layout": "cvat"}, "labels frame 10, but clip.mp4 has 10 frames (0 to 9)"),
        ([11], {"base": 1}, "labels frame 11, but clip.mp4 has 10 frames (1 to 10)"),
    ],
)
def test_labels_past_the_last_frame_are_refused(numbers, settings, said):
    assert fault(numbers, **settings).startswith(f"labels: {said}; remove these labels")
