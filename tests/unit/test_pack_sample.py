"""yolods.data.pack.sample: labels and rows of an index out of samples of any source."""

import zlib

import cv2
import numpy as np
import pytest

from yolods.data.pack.encode import Encoding
from yolods.data.pack.sample import (
    PACK_COLUMNS,
    Sample,
    label_name,
    label_text,
    pack_block,
    packed_row,
    store,
)
from yolods.data.verify import CheckedPair, Problem, check_pair

PIXELS = np.full((20, 40, 3), 90, np.uint8)
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()
ROWS = np.array([[1, 0.1, 1 / 3, 0.2, 1e-5], [0, 0.7, 0.5, 0.25, 0.5]], np.float32)


def checked(rows=ROWS, **more) -> CheckedPair:
    return CheckedPair("/set/images/a.jpg", (20, 40), rows, id="images/a.jpg", **more)


@pytest.mark.parametrize("polygons", [False, True])
def test_written_labels_are_read_as_the_same_numbers(tmp_path, polygons):
    rng = np.random.default_rng(0)
    segments = [rng.random((k, 2), np.float32) for k in (3, 7)] if polygons else []
    check = checked(segments=segments)
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "a.txt").write_text(label_text(check))
    read = check_pair(str(tmp_path / "a.jpg"), str(tmp_path / "a.txt"), None)
    assert read.problems == []
    if polygons:
        assert all(np.array_equal(a, b) for a, b in zip(read.segments, segments, strict=True))
    else:
        assert np.array_equal(read.rows, ROWS)


def test_a_label_file_is_kept_as_it_is():
    text = b"\xef\xbb\xbf1 .1 .2 .3 .4\r\n\r\n"
    stored = store(Sample(checked(), JPEG, (1, 2, 3, 4), text), Encoding(), 3)
    assert stored.label == text
    assert store(Sample(checked(), JPEG, (1, 2, 3, 4)), Encoding(), 3).label.startswith(b"1 0.1")
    nothing = checked(np.zeros((0, 5), np.float32))
    assert store(Sample(nothing, JPEG, (1, 2, -1, -1)), Encoding(), 3).label is None


def test_equal_images_are_known_by_their_original_bytes():
    small = Encoding(16)
    one, again = (store(Sample(checked(), JPEG, (1, 2, 3, 4)), small, 3) for _ in range(2))
    other = store(Sample(checked(), JPEG + b"\0", (1, 2, 3, 4)), small, 3)
    assert one.content == again.content != other.content
    assert one.image.data == other.image.data
    assert one.crc32 == zlib.crc32(one.image.data)


def test_an_image_that_cannot_be_decoded_keeps_its_bytes_and_is_told():
    stored = store(
        Sample(checked(), b"no image", (8, 0, -1, -1)), Encoding(16, uncompressed=True), 3
    )
    assert stored.image.data == b"no image"
    assert "cannot be decoded" in str(stored.check.problems[0])
    assert checked().problems == []


def test_rows_of_the_index():
    problems = [Problem("/set/labels/a.txt", 3, "bad"), Problem("/set/images/a.jpg", None, "worse")]
    check = checked(
        label_file="/set/labels/a.txt", problems=problems, lines_skipped=1, lines=[1, 2]
    )
    stored = store(Sample(check, JPEG, (5, 6, 7, 8), group=3), Encoding(), 3)
    rows = [packed_row(stored, f"images/train/{n}.jpg", n * 512) for n in (1, 2)]
    assert rows[0].stored.image.data == b"", "the image is in the tar file"
    block = pack_block(rows, shard=4)
    assert block.ids == ["images/a.jpg"] * 2
    assert block.stat.tolist() == [[5, 6, 7, 8]] * 2
    assert block.place.tolist() == [stored.content] * 2
    assert {name: column.tolist() for name, column in block.further.items()} == {
        "shard": [4, 4],
        "offset": [512, 1024],
        "size": [len(JPEG)] * 2,
        "crc32": [zlib.crc32(JPEG)] * 2,
        "group": [3, 3],
        "plain_jpeg": [1, 1],
    }
    assert all(block.further[name].dtype == kind.dtype for name, kind in PACK_COLUMNS.items())
    assert [(place, str(problem)) for place, problem in block.problems][:2] == [
        (0, "labels/train/1.txt:3: bad"),
        (0, "images/train/1.jpg: worse"),
    ]


def test_labels_lie_beside_images():
    assert label_name("images/train/a.b/c.d.jpg") == "labels/train/a.b/c.d.txt"
