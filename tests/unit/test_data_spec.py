"""yolods.data.spec: every fault of a data yaml at once, and paths found where ultralytics finds them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_dataset
from yolods.data.spec import IMAGE_SUFFIXES, as_ultralytics, fetch, list_images, read_spec
from yolods.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_spec(path)
    return str(caught.value).split("\n")


def test_a_sound_yaml(tmp_path):
    spec = read_spec(make_dataset(tmp_path, nc=3))
    assert spec.train == (tmp_path / "images/train",)
    assert spec.val == (tmp_path / "images/val",)
    assert spec.test == ()
    assert spec.names == ("colour0", "colour1", "colour2")
    assert (spec.channels, spec.download, spec.needs_download, spec.root) == (3, None, False, tmp_path)


def test_ultralytics_reads_the_same(tmp_path, monkeypatch):
    from ultralytics.data import utils

    monkeypatch.setattr(utils, "check_font", lambda *_: None)
    yaml = make_dataset(tmp_path)
    theirs, ours = utils.check_det_dataset(str(yaml)), as_ultralytics(read_spec(yaml))
    assert ours["names"] == theirs["names"] == {0: "colour0", 1: "colour1"}
    assert (ours["nc"], ours["channels"], ours["path"]) == (theirs["nc"], theirs["channels"], theirs["path"])
    assert (ours["train"], ours["val"]) == ([theirs["train"]], [theirs["val"]])


def test_image_types_are_those_of_ultralytics():
    from ultralytics.data.utils import IMG_FORMATS

    assert IMAGE_SUFFIXES == IMG_FORMATS


def test_every_fault_at_once(tmp_path):
    yaml = write(tmp_path / "d.yaml", "train: nowhere\nnc: 3\nnames: [a, b]\nchannels: none\n")
    lines = faults(yaml)
    assert len(lines) == 4
    assert all(line.startswith(f"{yaml}: ") for line in lines)
    assert "names and nc disagree: 2 names, nc: 3" in lines[0]
    assert "nowhere does not exist ('nowhere' below" in lines[1]
    assert "val: missing" in lines[2]
    assert "channels: 'none'" in lines[3]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("just words", "expected keys train, val and names, found str"),
        ("names: [a\ntrain: x", ":2: not valid yaml"),
        ("names: {0: a, 2: b}", "2 classes need the ids 0 to 1 (without 1; not expected: 2)"),
        ("names: {a: 0}", "keys must be class ids 0 to 0, found 'a'"),
        ("names: word", "must be a list or a mapping from class id to name, not str"),
        ("names: []", "names: is empty"),
        ("nc: many", "nc: 'many' is not a number of classes"),
        ("train: 3", "train: must be a path or a list of paths, not 3"),
        ("path: [a]", "path: must be a folder name, not list"),
    ],
)
def test_one_line_for_each_mistake(tmp_path, text, part):
    assert sum(part in line for line in faults(write(tmp_path / "d.yaml", text))) == 1


def test_missing_yaml_and_folder(tmp_path):
    assert "does not exist; --data wants" in faults(tmp_path / "no.yaml")[0]
    assert "is a folder with 0 yaml files" in faults(tmp_path)[0]


def test_folder_without_images(tmp_path):
    yaml = make_dataset(tmp_path)
    for file in (tmp_path / "images/val").iterdir():
        file.unlink()
    (line,) = faults(yaml)
    assert f"val: no images in {tmp_path / 'images/val'}" in line


def test_path_key_lists_and_validation_alias(tmp_path):
    make_dataset(tmp_path / "sub", train=3, val=2)
    (tmp_path / "sub/list.txt").write_text("./images/val/001.jpg\n\n./images/val/000.jpg\nnotes.md\n")
    text = "path: sub\ntrain: [images/train, images/val]\nvalidation: list.txt\nnc: 2\n"
    spec = read_spec(write(tmp_path / "d.yaml", text))
    assert spec.root == tmp_path / "sub"
    assert spec.names == ("class_0", "class_1")
    assert [Path(f).name for f in list_images(spec.train)] == ["000.jpg", "001.jpg", "002.jpg", "000.jpg", "001.jpg"]
    assert list_images(spec.val) == [str(tmp_path / f"sub/images/val/{i:03}.jpg") for i in (0, 1)]


def test_leading_parent_as_in_yolov5_yamls(tmp_path):
    make_dataset(tmp_path / "set")
    yaml = write(tmp_path / "set/d.yaml", "train: ../images/train\nval: ../images/val\nnames: [a, b]\n")
    assert read_spec(yaml).train == (tmp_path / "set/images/train",)


def test_download_waits_for_fetch(tmp_path, monkeypatch):
    from ultralytics.data import utils

    monkeypatch.setattr(utils, "check_font", lambda *_: None)
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    script = f"import sys; sys.path.append({str(Path(__file__).parents[2])!r}); from tests.tiny import make_dataset\n"
    script += f"from pathlib import Path; make_dataset(Path({str(tmp_path)!r}))\n"
    body = "train: images/train\nval: images/val\nnames: [a, b]\ndownload: |\n  " + script.replace("\n", "\n  ")
    spec = read_spec(write(tmp_path / "d.yaml", body))
    assert spec.needs_download
    assert not (tmp_path / "images").exists()
    fetched = fetch(spec)
    assert not fetched.needs_download
    assert len(list_images(fetched.train)) == 6


def test_failed_download_is_one_line(tmp_path):
    body = "train: images/train\nval: images/val\nnames: [a]\ndownload: |\n  raise OSError('no route\\nto host')\n"
    with pytest.raises(UserError, match="download failed: no route; get the images by hand") as caught:
        fetch(read_spec(write(tmp_path / "d.yaml", body)))
    assert "\n" not in str(caught.value)


def test_a_yaml_that_ultralytics_ships_is_found_by_name():
    spec = read_spec(Path("coco8.yaml"))
    assert len(spec.names) == 80
    assert spec.download.startswith("https://")


def test_reading_needs_neither_torch_nor_ultralytics(tmp_path):
    yaml = make_dataset(tmp_path)
    code = (
        "import sys; from pathlib import Path; from yolods.data.spec import read_spec; read_spec(Path(sys.argv[1]));"
        "sys.exit(bool({'torch', 'ultralytics', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(yaml)], cwd=Path(__file__).parents[2]).returncode == 0
