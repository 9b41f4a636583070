"""The rules for one image and its label file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from yolods.data.verify import MIN_SIDE, check_pair

BOX = "1 0.5 0.5 0.25 0.5"


def pair(folder, label: str | None, *, size: tuple[int, int] = (40, 20), name: str = "a.png"):
    image, text = folder / name, folder / "a.txt"
    Image.new("RGB", size, "grey").save(image)
    if label is not None:
        text.write_text(label)
    return check_pair(str(image), str(text), None)


def told(found) -> list[str]:
    return [str(problem).partition(found.label_file)[2] for problem in found.problems]


def test_a_sound_pair(tmp_path):
    found = pair(tmp_path, f"{BOX}\n\n0 0.1 0.1 0.2 0.2\n")
    assert found.shape == (20, 40)
    assert found.rows.dtype == np.float32
    assert (
        found.rows.tolist()
        == np.array([[1, 0.5, 0.5, 0.25, 0.5], [0, 0.1, 0.1, 0.2, 0.2]], np.float32).tolist()
    )
    assert (found.lines, found.segments, found.problems) == ([1, 3], [], [])


def test_an_image_without_a_label_file_is_a_background(tmp_path):
    found = pair(tmp_path, None)
    assert found.shape == (20, 40) and found.rows.shape == (0, 5) and not found.problems


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "1 0.5 0.5 0.25",
            "4 numbers; a line is `class x y width height`, or a class and three or more x y pairs",
        ),
        ("1.5 0.5 0.5 0.25 0.5", "class id 1.5 is not an integer"),
        (
            "1 0.5 1.02 0.25 0.5",
            "coordinate 1.02 is outside [0, 1] (1% tolerance); labels are fractions of the image "
            "size",
        ),
        ("1 0.5 0.5 0 0.5", "width 0 and height 0.5: both must be above 0"),
        ("1 0.5 x 0.25 0.5", "'x' is not a number"),
        ("1 0.5 nan 0.25 0.5", "'nan' is not a finite number"),
        (BOX, "repeats line 1"),
    ],
)
def test_a_bad_line_is_skipped_and_the_others_stay(tmp_path, line, reason):
    found = pair(tmp_path, f"{BOX}\n{line}\n")
    assert told(found) == [f":2: {reason}; line skipped"]
    assert (len(found.rows), found.lines_skipped) == (1, 1)


def test_a_coordinate_may_pass_the_border_by_a_hundredth(tmp_path):
    assert pair(tmp_path, "1 1.009 0.5 0.25 0.5").problems == []


def test_a_polygon_has_the_box_around_it(tmp_path):
    found = pair(tmp_path, "2 0.1 0.2 0.5 0.2 0.5 0.6")
    assert found.rows[0].tolist() == pytest.approx([2, 0.3, 0.4, 0.4, 0.4])
    assert found.segments[0].shape == (3, 2)


def test_polygons_are_kept_only_where_every_box_has_one(tmp_path):
    found = pair(tmp_path, f"2 0.1 0.2 0.5 0.2 0.5 0.6\n{BOX}\n")
    assert len(found.rows) == 2 and found.segments == []


def test_the_box_of_a_polygon_is_left_out(tmp_path):
    found = pair(tmp_path, "2 0.3 0.4 0.4 0.4\n2 0.1 0.2 0.5 0.2 0.5 0.6\n1 0.3 0.4 0.4 0.4\n")
    assert told(found) == [":1: is the box of the polygon on line 2; line skipped"]
    assert found.lines == [2, 3]  # that of another class is another object


def test_keypoints_after_the_box_are_ignored(tmp_path):
    image, text = tmp_path / "a.png", tmp_path / "a.txt"
    Image.new("RGB", (40, 20)).save(image)
    text.write_text(f"{BOX} 0.1 0.1 2 0.2 0.2 2\n")
    found = check_pair(str(image), str(text), (2, 3))
    assert found.problems == [] and found.segments == [] and len(found.rows) == 1


def test_an_image_too_small_cut_short_or_none_is_skipped(tmp_path):
    assert str(pair(tmp_path, BOX, size=(MIN_SIDE - 1, 40)).problems[0]).endswith(
        f"{MIN_SIDE - 1}x40 pixels: less than {MIN_SIDE} on a side; image skipped"
    )
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    for name, data in (("cut.jpg", whole.read_bytes()[:-500]), ("none.jpg", b"text")):
        (tmp_path / name).write_bytes(data)
        found = check_pair(str(tmp_path / name), str(tmp_path / "none.txt"), None)
        assert found.shape is None and "damaged or not an image" in str(found.problems[0])
    assert "file does not exist" in str(
        check_pair(str(tmp_path / "gone.jpg"), "", None).problems[0]
    )


def test_a_label_file_that_cannot_be_read_skips_its_image(tmp_path):
    image, text = tmp_path / "a.png", tmp_path / "a.txt"
    Image.new("RGB", (40, 20)).save(image)
    text.write_bytes(b"\xff\xfe\x00")
    found = check_pair(str(image), str(text), None)
    assert found.shape is None and "label file cannot be read" in str(found.problems[0])
