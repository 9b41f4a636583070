"""Lines of MOT and VisDrone texts."""

from __future__ import annotations

import pytest

from yolods.data.video.labels.sequence_text import SequenceBox, normalised, read_sequence
from yolods.errors import UserError


@pytest.fixture
def text(tmp_path):
    """A function that writes a text and reads it."""

    def read(*lines: str, **settings):
        (tmp_path / "clip.txt").write_text("\n".join(lines))
        return read_sequence(tmp_path / "clip.txt", **settings)

    return read


def test_a_mot_and_a_visdrone_line(text):
    found = text("1,7,10,20,30,40,1,2,0.8", "", "3, 0, 1.5, 2, 3, 4, 1, 1, 0, 2,")
    assert found.boxes == [
        SequenceBox(1, 1, (10, 20, 30, 40), 1),
        SequenceBox(3, 3, (1.5, 2, 3, 4), 0),
    ]
    assert found.problems == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,1,0,0,5,5,1", "7 values; a line is frame,id,x,y,width,height,confidence,class"),
        ("1,1,0,x,5,5,1,1", "'x' is not a number"),
        ("1,1,0,inf,5,5,1,1", "'inf' is not a finite number"),
        ("1.5,1,0,0,5,5,1,1", "frame 1.5 is not the number of a frame"),
        ("-1,1,0,0,5,5,1,1", "frame -1 is not the number of a frame"),
        ("1,1,0,0,5,5,1,1.5", "class 1.5 is not an integer"),
        ("1,1,0,0,0,5,1,1", "width 0 and height 5: both must be above 0"),
    ],
)
def test_a_bad_line_is_skipped_and_the_others_stay(text, line, reason):
    found = text("1,1,0,0,5,5,1,1", line)
    (problem,) = found.problems
    assert (problem.line, problem.text) == (2, f"{reason}; line skipped")
    assert (len(found.boxes), found.lines_skipped) == (1, 1)


def test_what_does_not_count_is_left_out_and_told(text):
    found = text("1,1,0,0,5,5,1,1", "1,0,0,0,5,5,0,0", "2,0,0,0,0,0,0,12")
    assert len(found.boxes) == 1
    assert [problem.text for problem in found.problems] == ["2 lines with confidence 0 left out"]


def test_classes_from_0_are_refused_unless_told(text, tmp_path):
    lines = ("1,1,0,0,5,5,1,1", "1,2,0,0,5,5,1,0", "2,2,0,0,5,5,1,0")
    with pytest.raises(UserError) as caught:
        text(*lines)
    assert str(caught.value) == (
        f"{tmp_path}/clip.txt:2: class 0, in all 2 lines with a class below 1, from which the "
        "classes are counted; correct them, or write `first_class: 0` into the data yaml"
    )
    assert [box.id_of_class for box in text(*lines, first_class=0).boxes] == [1, 0, 0]


def test_another_kind_of_text_is_refused(text, tmp_path):
    with pytest.raises(UserError, match=r"clip\.txt: not a MOT or VisDrone text: expected .* '0 0"):
        text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(UserError, match=r"clip\.txt: cannot be read: "):
        read_sequence(tmp_path / "none" / "clip.txt")


def test_a_box_is_cut_at_the_border():
    assert normalised(SequenceBox(1, 1, (10, 20, 30, 40), 2), (100, 200)) == pytest.approx(
        [2, 25 / 200, 40 / 100, 30 / 200, 40 / 100]
    )
    assert normalised(SequenceBox(1, 1, (-10, 80, 30, 40), 0), (100, 200)) == pytest.approx(
        [0, 10 / 200, 90 / 100, 20 / 200, 20 / 100]
    )
    assert normalised(SequenceBox(1, 1, (200, 0, 30, 40), 0), (100, 200)) is None
