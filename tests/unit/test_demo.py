"""yolods.data.demo: a sound data set, the same each time, with training and validation kept
apart."""

import shutil
from itertools import product
from pathlib import Path

import pytest

from yolods.data import demo
from yolods.data.demo import REGIONS, ensure_demo
from yolods.data.scan import scan
from yolods.data.spec import read_spec
from yolods.errors import UserError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "COUNTS", {"train": 4, "val": 3})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_it_is_a_sound_data_set(tmp_path, small):
    spec = read_spec(ensure_demo(tmp_path))
    assert spec.names == ("cone", "ball", "sign")
    for split, count in (("train", 4), ("val", 3)):
        found = scan(spec, split, cache=tmp_path)
        assert found.problems == ()
        assert len(found.labels) == count
        assert all(
            label["shape"] == (320, 320) and 1 <= len(label["cls"]) <= 5 for label in found.labels
        )
        assert all(label["bboxes"][:, 2:].min() > 0.08 for label in found.labels)


def test_it_is_the_same_each_time_and_made_once(tmp_path, small):
    first = ensure_demo(tmp_path / "a")
    assert contents(first.parent) == contents(ensure_demo(tmp_path / "b").parent)
    stamp = first.stat().st_mtime_ns
    assert ensure_demo(tmp_path / "a").stat().st_mtime_ns == stamp
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["demo-v1"]
    assert "safe to delete" in (first.parent / "README.md").read_text()


def test_lost_files_are_made_again(tmp_path, small):
    whole = contents(ensure_demo(tmp_path).parent)
    (tmp_path / "demo-v1/images/val/0001.jpg").unlink()
    assert contents(ensure_demo(tmp_path).parent) == whole


def test_another_process_that_was_quicker(tmp_path, small, monkeypatch):
    make = demo._make
    monkeypatch.setattr(
        demo, "_make", lambda folder: (make(folder), shutil.copytree(folder, tmp_path / "demo-v1"))
    )
    ensure_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["demo-v1"]


def test_a_crash_leaves_nothing_half_made(tmp_path, small, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo.cv2, "imencode", fail)
    with pytest.raises(
        UserError, match=r"cannot create the demo data in .*: No space left on device; set YOLODS"
    ):
        ensure_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_train_and_val_backgrounds_do_not_touch():
    for (name, x0, y0, x1, y1), (other, u0, v0, u1, v1) in product(
        REGIONS["train"], REGIONS["val"]
    ):
        assert name != other or x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0
