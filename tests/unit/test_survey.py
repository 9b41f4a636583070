"""yolods.data.video.packing.survey: all videos are looked at, and every fault of all is told."""

from __future__ import annotations

import numpy as np
import pytest

from tests.clips import numbered_clip
from tests.videos import HEIGHT, WIDTH, cut
from yolods.data.pack.encode import Encoding
from yolods.data.spec import read_spec
from yolods.data.video.packing.frame_set import FrameSet
from yolods.data.video.packing.survey import as_channels, estimated_pack_bytes, survey
from yolods.errors import UserError

AS_IS = Encoding()


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate("abcde"):
        numbered_clip(tmp_path / f"videos/{name}.mp4", 8 + number)
    return tmp_path


def look(root, further="", *, any_class=False, workers=1, encoding=AS_IS):
    yaml = root / "set.yaml"
    numbered_clip(root / "val/v.mp4", 3)
    yaml.write_text(f"train: videos\nval: val\nnames: [a]\n{further}")
    frames = FrameSet.of(read_spec(yaml), "train")
    return survey(frames, encoding, any_class=any_class, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_there_is(root, workers):
    facts = look(root, workers=workers)
    assert [each.frames for each in facts] == [8, 9, 10, 11, 12]
    assert {each.shape for each in facts} == {(HEIGHT, WIDTH)}
    assert [each.used for each in facts] == [each.boxes for each in facts] == [8, 9, 10, 11, 12]
    assert [each.used for each in look(root, "stride: 5\n")] == [2, 2, 2, 3, 3]


def test_the_estimate_follows_the_encoding(root):
    large, small = (
        estimated_pack_bytes(look(root, encoding=each)) for each in (AS_IS, Encoding(48))
    )
    assert small < 0.7 * large
    raw = look(root, encoding=Encoding(WIDTH, 95, True))[0]
    assert HEIGHT * WIDTH * 3 <= raw.image_bytes < HEIGHT * WIDTH * 3 + 100


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_of_every_video_at_once(root, workers):
    cut(root / "videos/a.mp4", root / "videos/a.mp4")
    (root / "labels/b/000008.txt").rename(root / "labels/b/000009.txt")
    (root / "labels/c/000000.txt").unlink()
    (root / "labels/d/000002.txt").write_text("0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n-1 .5 .5 .2 .2\n")
    with pytest.raises(UserError) as caught:
        look(root, workers=workers)
    a, b, c, d = str(caught.value).splitlines()
    assert a.startswith(f"{root}/videos/a.mp4: cut off: an mp4 or mov file without its index")
    assert b.startswith(f"{root}/labels/b/NUMBER.txt: labels frame 9, but {root}/videos/b.mp4 has")
    assert "they may count from 0 or from 1; write `base: 0` or `base: 1`" in c
    assert d.startswith(f"{root}/labels/d/000002.txt:2: class id 1 is outside the 1 names of ")
    assert "; 2 boxes have such ids; correct names or the labels" in d


def test_class_ids_do_not_matter_if_all_become_one(root):
    (root / "labels/d/000002.txt").write_text("5 .5 .5 .1 .1\n")
    assert len(look(root, any_class=True)) == 5


def test_frames_are_made_grey():
    image = np.zeros((4, 6, 3), np.uint8)
    assert as_channels(image, 3) is image
    assert as_channels(image, 1).shape == (4, 6, 1)
