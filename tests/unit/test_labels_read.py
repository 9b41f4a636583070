"""The boxes of each frame, out of every layout."""

from __future__ import annotations

import numpy as np
import pytest

from yolods.data.video.labels.label_files import find_labels
from yolods.data.video.labels.read import read_labels
from yolods.errors import UserError

SHAPE = (100, 200)
BOX = "1 0.5 0.5 0.25 0.5"


@pytest.fixture
def read(tmp_path):
    """A function that writes texts beside a video of three frames, and reads them."""
    video = tmp_path / "clip.mp4"
    video.touch()

    def write(texts: dict[str, str], **settings):
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return read_labels(find_labels([video])[video], 3, SHAPE, **settings)

    return write


@pytest.mark.parametrize(
    ("names", "base", "absent"),
    [
        (("clip/000000.txt", "clip/000002.txt"), None, 1),
        (("clip_1.txt", "clip_3.txt"), None, 2),
        (("clip/1.txt", "clip/3.txt"), 1, 2),
        (("clip/frame_000000.txt", "clip/frame_000002.txt"), None, 1),
    ],
)
def test_a_text_per_frame(read, tmp_path, names, base, absent):
    found = read(dict(zip(names, (f"{BOX}\n0 0.1 0.1 0.2 0.2", ""), strict=True)), base=base)
    assert sorted(found.pairs) == [0, 2]
    first, last = found.pairs[0], found.pairs[2]
    assert first.rows[:, 0].tolist() == [1, 0] and first.lines == [1, 2]
    assert (first.shape, first.file) == (SHAPE, f"{tmp_path}/clip.mp4 frame 0")
    assert first.label_file == f"{tmp_path}/{names[0]}"
    assert last.rows.shape == (0, 5)  # an empty text: a background
    assert [problem.text for problem in found.problems] == [
        f"1 of 3 frames have no label file and are left out (frame {absent}); an empty file marks "
        "a background"
    ]


def test_the_rules_for_lines_are_those_of_images(read, tmp_path):
    found = read({"clip/0.txt": f"{BOX}\n1 0.5 0.5 0.25\n", "clip/1.txt": BOX, "clip/2.txt": BOX})
    (problem,) = found.pairs[0].problems
    assert str(problem).startswith(f"{tmp_path}/clip/0.txt:2: 4 numbers; a line is")
    assert len(found.pairs[0].rows) == 1 and found.problems == []


def test_a_text_that_cannot_be_read_skips_its_frame(read, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/1.txt").write_bytes(b"\xff\xfe\x00")
    pair = read({"clip/0.txt": BOX}).pairs[1]
    assert pair.shape is None and "label file cannot be read" in str(pair.problems[0])


def test_a_sequence_labels_every_frame(read, tmp_path):
    lines = (
        "1,1,50,25,50,50,1,2,1",
        "3,1,-10,0,30,10,1,1,1",
        "1,1,50,25,50,50,1,2,1",
        "3,2,300,0,30,10,1,1,1",
        "1,1,0,0,20,10,1,1,1",
    )
    found = read({"clip.txt": "\n".join(lines)})
    assert sorted(found.pairs) == [0, 1, 2]
    first, middle, last = (found.pairs[number] for number in range(3))
    expected = [[1, 0.375, 0.5, 0.25, 0.5], [0, 0.05, 0.05, 0.1, 0.1]]
    assert first.rows == pytest.approx(np.array(expected)) and first.rows.dtype == np.float32
    assert first.lines == [1, 5] and middle.rows.shape == (0, 5)
    assert last.rows[0, 3] == pytest.approx(0.1)
    text = tmp_path / "clip.txt"
    assert [str(each) for each in (*first.problems, *last.problems)] == [
        f"{text}:3: repeats line 1; line skipped",
        f"{text}:4: the box is outside the image; line skipped",
    ]
    assert (first.lines_skipped, last.lines_skipped) == (1, 1)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"clip.txt": "4,1,0,0,5,5,1,1"}, r"clip\.txt: labels frame 4, but .* has 3 frames"),
        ({"clip/1.txt": BOX}, r"write `base: 0` or `base: 1`"),
        ({"clip/frame_000003.txt": BOX}, r"labels frame 3, but"),
        ({"clip.txt": "1,1,0,0,5,5,0,1"}, r"clip\.txt: has no box for "),
    ],
)
def test_what_is_refused(read, texts, said):
    with pytest.raises(UserError, match=said):
        read(texts)
