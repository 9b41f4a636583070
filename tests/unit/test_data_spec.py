"""yolods.data.spec: every fault of a data yaml at once, and paths found where ultralytics finds
them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_dataset
from yolods.config.names.data_name import shipped_yaml, stores
from yolods.data.images.listing import find_images, list_images
from yolods.data.spec import as_ultralytics, fetch, places, read_spec
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
    assert (spec.channels, spec.download, spec.needs_download, spec.root) == (
        3,
        None,
        False,
        tmp_path,
    )


def test_ultralytics_reads_the_same(tmp_path, monkeypatch):
    from ultralytics.data import utils

    monkeypatch.setattr(utils, "check_font", lambda *_: None)
    yaml = make_dataset(tmp_path)
    theirs, ours = utils.check_det_dataset(str(yaml)), as_ultralytics(read_spec(yaml))
    assert ours["names"] == theirs["names"] == {0: "colour0", 1: "colour1"}
    assert (ours["nc"], ours["channels"], ours["path"]) == (
        theirs["nc"],
        theirs["channels"],
        theirs["path"],
    )
    assert (ours["train"], ours["val"]) == ([theirs["train"]], [theirs["val"]])


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
        ("names: {}", "names: is empty"),
        ("nc: many", "nc: 'many' is not a number of classes"),
        ("train: 3", "train: must be a path or a list of paths, not 3"),
        ("path: [a]", "path: must be a folder name, not list"),
    ],
)
def test_one_line_for_each_mistake(tmp_path, text, part):
    assert sum(part in line for line in faults(write(tmp_path / "d.yaml", text))) == 1


def test_missing_yaml_and_folder(tmp_path):
    assert "does not exist; --data takes" in faults(tmp_path / "no.yaml")[0]
    assert "is a folder with 0 yaml files" in faults(tmp_path)[0]


def test_folder_without_images(tmp_path):
    yaml = make_dataset(tmp_path)
    for file in (tmp_path / "images/val").iterdir():
        file.unlink()
    (line,) = faults(yaml)
    assert f"val: no images in {tmp_path / 'images/val'}" in line


def test_path_key_lists_and_validation_alias(tmp_path):
    make_dataset(tmp_path / "sub", train=3, val=2)
    (tmp_path / "sub/list.txt").write_text(
        "./images/val/001.jpg\n\n./images/val/000.jpg\nnotes.md\n"
    )
    text = "path: sub\ntrain: [images/train, images/val]\nvalidation: list.txt\nnc: 2\n"
    spec = read_spec(write(tmp_path / "d.yaml", text))
    assert spec.root == tmp_path / "sub"
    assert spec.names == ("class_0", "class_1")
    assert [Path(f).name for f in list_images(spec.train)] == [
        "000.jpg",
        "001.jpg",
        "002.jpg",
        "000.jpg",
        "001.jpg",
    ]
    assert list_images(spec.val) == [str(tmp_path / f"sub/images/val/{i:03}.jpg") for i in (0, 1)]


def test_leading_parent_as_in_yolov5_yamls(tmp_path):
    make_dataset(tmp_path / "set")
    yaml = write(
        tmp_path / "set/d.yaml", "train: ../images/train\nval: ../images/val\nnames: [a, b]\n"
    )
    assert read_spec(yaml).train == (tmp_path / "set/images/train",)


def test_download_waits_for_fetch(tmp_path, monkeypatch):
    from ultralytics.data import utils

    monkeypatch.setattr(utils, "check_font", lambda *_: None)
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    script = (
        f"import sys; sys.path.append({str(Path(__file__).parents[2])!r}); from tests.tiny import "
        "make_dataset\n"
    )
    script += f"from pathlib import Path; make_dataset(Path({str(tmp_path)!r}))\n"
    body = "train: images/train\nval: images/val\nnames: [a, b]\ndownload: |\n  " + script.replace(
        "\n", "\n  "
    )
    spec = read_spec(write(tmp_path / "d.yaml", body))
    assert spec.needs_download
    assert not (tmp_path / "images").exists()
    fetched = fetch(spec)
    assert not fetched.needs_download
    assert len(list_images(fetched.train)) == 6


def test_failed_download_is_one_line(tmp_path):
    body = (
        "train: images/train\nval: images/val\nnames: [a]\ndownload: |\n"
        "  raise OSError('no route\\nto host')\n"
    )
    with pytest.raises(
        UserError, match="download failed: no route; download the images into"
    ) as caught:
        fetch(read_spec(write(tmp_path / "d.yaml", body)))
    assert "\n" not in str(caught.value)


def test_a_yaml_that_ultralytics_ships_is_found_by_name():
    spec = read_spec(Path("coco8.yaml"))
    assert len(spec.names) == 80
    assert spec.download.startswith("https://")


@pytest.mark.parametrize("name", ["coco8.yaml", "coco8", "coco.yaml", "coco128.yaml", "VOC.yaml"])
def test_shipped_yamls_are_found_where_nothing_of_that_name_lies(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert read_spec(Path(name)).needs_download
    assert shipped_yaml(Path(name)).is_file()
    assert shipped_yaml(Path("elsewhere") / name) is None and shipped_yaml(Path("no.yaml")) is None


def test_a_download_that_cannot_be_had_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    from ultralytics.data import utils

    def offline(url, dir, **_):
        raise ConnectionError(
            f"\n❌  Download failure for {url} to {dir}. Environment may be offline.\nmore"
        )

    monkeypatch.setattr(utils, "safe_download", offline)
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        fetch(read_spec(Path("coco8.yaml")))
    line = str(caught.value)
    assert (
        "\n" not in line
        and f"coco8.zip to {tmp_path / 'cache/datasets'}. Environment may be offline; " in line
    )


def test_data_sets_that_ultralytics_has_downloaded_are_found(tmp_path, monkeypatch):
    """Its own settings name the folder, not those that it makes for this process in the cache."""
    make_dataset(tmp_path / "theirs/tiny")
    settings = tmp_path / "home/.config/Ultralytics/settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'{{"datasets_dir": "{tmp_path / "theirs"}"}}')
    ours = tmp_path / "cache/Ultralytics/settings.json"
    ours.parent.mkdir(parents=True)
    ours.write_text('{"datasets_dir": "/nowhere"}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "cache"))
    yaml = write(
        tmp_path / "d.yaml", "path: tiny\ntrain: images/train\nval: images/val\nnames: [a, b]\n"
    )
    assert read_spec(yaml).root == tmp_path / "theirs/tiny"
    assert stores() == [tmp_path / "theirs", tmp_path / "cache/datasets"]


def test_labels_are_those_beside_the_images_as_they_are_named_and_not_those_where_a_link_leads(
    tmp_path,
):
    """`second` has labels of its own for the images of the first."""
    from ultralytics.data.utils import img2label_paths

    make_dataset(tmp_path)
    second = tmp_path / "second"
    (second / "labels/train").mkdir(parents=True)
    (second / "images").symlink_to("../images")
    yaml = write(second / "d.yaml", "train: images/train\nval: ../images/val\nnames: [a, b]\n")
    spec = read_spec(yaml)
    assert spec.train == (second / "images/train",)
    assert {Path(file).parent for file in map(Path, img2label_paths(list_images(spec.train)))} == {
        second / "labels/train"
    }
    assert spec.val == (tmp_path / "images/val",)
    assert places(spec)[0][-2:] == (str(second / "labels/train"), str(tmp_path / "labels/val"))


@pytest.mark.parametrize("where", ["folder", "split", "yaml", "path", "parent"])
def test_links_at_every_height_of_a_path_keep_their_spelling(tmp_path, where):
    real = tmp_path / "real"
    make_dataset(real)
    named = tmp_path / "named"
    text = "train: images/train\nval: images/val\nnames: [a, b]\n"
    if where == "folder":
        named.symlink_to("real")
        spec = read_spec(named / "tiny.yaml")
    elif where == "split":
        (named / "images").mkdir(parents=True)
        (named / "images/train").symlink_to(real / "images/train")
        (named / "images/val").symlink_to(real / "images/val")
        spec = read_spec(write(named / "d.yaml", text))
    elif where == "yaml":
        named.mkdir()
        (named / "images").symlink_to(real / "images")
        (named / "d.yaml").symlink_to(real / "tiny.yaml")
        spec = read_spec(named / "d.yaml")
    elif where == "path":
        named.symlink_to("real")
        spec = read_spec(write(tmp_path / "d.yaml", f"path: {named}\n{text}"))
    else:
        named.symlink_to("real/images")  # `named/..` is `real`, not the folder that `named` lies in
        spec = read_spec(
            write(
                tmp_path / "d.yaml", "train: named/../images/train\nval: named/val\nnames: [a, b]\n"
            )
        )
        assert spec.train == (tmp_path / "named/../images/train",)
        assert len(list_images(spec.train)) == 6
        return
    assert spec.train == (named / "images/train",)
    assert len(list_images(spec.train)) == 6


@pytest.mark.process
def test_reading_needs_neither_torch_nor_ultralytics(tmp_path):
    yaml = make_dataset(tmp_path)
    code = (
        "import sys; from pathlib import Path; from yolods.data.spec import read_spec; "
        "read_spec(Path(sys.argv[1]));"
        "sys.exit(bool({'torch', 'ultralytics', 'numpy'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code, str(yaml)], cwd=Path(__file__).parents[2]
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (
            "[no, a]",
            "names: class 0 is false: YAML reads yes, no, on and off as true and false; put the "
            "name in quotes",
        ),
        ("{0: a, 1: on}", "names: class 1 is true: YAML reads yes, no, on and off"),
        (
            "[a, null]",
            "names: class 1 is empty: a name must be text, not NoneType; put it in quotes",
        ),
        ("[2020-01-01]", "a name must be text, not date; put it in quotes"),
        ("[[a]]", "a name must be text, not list; put it in quotes"),
        ("{0: a, 1.9: b}", "names: keys must be class ids 0 to 1, found 1.9"),
        ("{0: a, true: b}", "names: keys must be class ids 0 to 1, found True"),
        ("{0: a, '0': b}", "names: an id occurs twice, with and without quotes; keep one"),
        ("{0: a, 0: b}", ":3: not valid yaml: 0 is already on line 3; keep one"),
        ("[a]\nnames: [b]", ":4: not valid yaml: names is already on line 3; keep one"),
    ],
)
def test_a_name_that_yaml_takes_for_something_else_does_not_become_a_class(tmp_path, names, part):
    make_dataset(tmp_path)
    (line,) = faults(
        write(tmp_path / "d.yaml", f"train: images/train\nval: images/val\nnames: {names}\n")
    )
    assert part in line


def test_numbers_are_names(tmp_path):
    make_dataset(tmp_path)
    spec = read_spec(
        write(tmp_path / "d.yaml", "train: images/train\nval: images/val\nnames: [7, 1.5, 'no']\n")
    )
    assert (spec.names, spec.warnings) == (("7", "1.5", "no"), [])


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("strid", "stride"),
        ("Base", "base"),
        ("splits", "split"),
        ("channel", "channels"),
        ("kptshape", "kpt_shape"),
        ("paths", "path"),
    ],
)
def test_a_key_that_is_nearly_a_known_one_is_said_once(tmp_path, key, meant):
    yaml = make_dataset(tmp_path)
    write(yaml, f"{yaml.read_text()}{key}: 5\n")
    assert read_spec(yaml).warnings == [
        f"{yaml}: {key}: unknown key, ignored (did you mean '{meant}'?)"
    ]


def test_keys_of_other_tools_are_left_alone(tmp_path):
    yaml = make_dataset(tmp_path)
    others = "roboflow: {version: 1}\nname: cells\ntask: detect\nvalidate: 1\nfolder: x\n7: x\n"
    write(yaml, yaml.read_text() + others + "channels: 3\nchannel: 3\n")
    assert read_spec(yaml).warnings == []


def test_no_yaml_of_ultralytics_has_a_key_that_looks_misspelt():
    from ultralytics.utils import ROOT

    files = sorted((ROOT / "cfg" / "datasets").glob("*.yaml"))
    assert len(files) > 10
    for file in files:
        try:
            told = "".join(read_spec(file).warnings)
        except UserError as error:  # its images are not here
            told = str(error)
        assert "did you mean" not in told, file


def test_a_key_that_is_missed_is_told_with_the_one_that_is_nearly_it(tmp_path):
    make_dataset(tmp_path)
    first, second = faults(
        write(tmp_path / "d.yaml", "trains: images/train\nval: images/val\nnames: [a, b]\n")
    )
    assert "train: missing" in first
    assert second == (
        f"{tmp_path / 'd.yaml'}: trains: unknown key, ignored (did you mean 'train'?)"
    )


@pytest.mark.parametrize("name", ["a\\nb", "a\\tb", "a\\u2028b", "\\x1b[31m"])
def test_a_name_of_several_lines_does_not_break_the_table_of_results(tmp_path, name):
    make_dataset(tmp_path)
    (line,) = faults(
        write(tmp_path / "d.yaml", f'train: images/train\nval: images/val\nnames: ["{name}", b]\n')
    )
    assert line.endswith("a name must be one line without control characters")
    assert line.isprintable()


def test_classes_of_one_name_are_said(tmp_path):
    make_dataset(tmp_path)
    spec = read_spec(
        write(tmp_path / "d.yaml", "train: images/train\nval: images/val\nnames: [a, b, a]\n")
    )
    assert spec.warnings == [
        f"{tmp_path / 'd.yaml'}: several classes have the same name: a (2 times)"
    ]


# Videos


def video_files(root: Path, *names: str) -> list[Path]:
    """Files that are named like videos, no two with the same content."""
    found = []
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        found.append(path)
    return found


def test_splits_may_be_videos_and_folders_of_them(tmp_path):
    one, two, three = video_files(tmp_path, "videos/train/a.mp4", "videos/train/x/b.AVI", "v.mkv")
    text = "train: videos/train\nval: [v.mkv]\nnames: [a]\nstride: 5\nbase: 1\n"
    spec = read_spec(write(tmp_path / "d.yaml", text))
    assert spec.kinds == {"train": "videos", "val": "videos"}
    assert (spec.videos("train"), spec.videos("val"), spec.videos("test")) == (
        [one, two],
        [three],
        [],
    )
    assert spec.sources("train") == (tmp_path / "videos/train",)
    assert (spec.video.stride, spec.video.base, spec.warnings) == (5, 1, [])


@pytest.mark.parametrize("key", ["videos", "train"])
def test_videos_are_divided(tmp_path, key):
    videos = video_files(tmp_path, *(f"clips/{number}.mp4" for number in range(5)))
    text = f"{key}: clips\nsplit: {{val: 0.4, by: video}}\nnames: [a]\n"
    spec = read_spec(write(tmp_path / "d.yaml", text))
    train, val = spec.videos("train"), spec.videos("val")
    assert (len(train), len(val)) == (3, 2) and sorted(train + val) == videos
    assert spec.sources("val") == spec.sources("train") == (tmp_path / "clips",)


def test_faults_of_videos_are_told_with_the_others(tmp_path):
    video_files(tmp_path, "clips/a.mp4", "clips/b.mp4")
    text = "videos: clips\nstride: no\nsplit: {val: 2, test: 0.5, by: frame}\nnames: []\n"
    lines = faults(write(tmp_path / "d.yaml", text))
    parts = ["names: is empty", "stride is false", "split.by is 'frame'", "split.val is 2"]
    assert len(lines) == len(parts)
    assert all(part in line for part, line in zip(parts, lines, strict=True))


def test_too_few_videos_for_the_splits(tmp_path):
    video_files(tmp_path, "clips/a.mp4")
    text = "videos: clips\nsplit: {val: 0.5, by: video}\nnames: [a]\n"
    (line,) = faults(write(tmp_path / "d.yaml", text))
    assert "split: 1 video cannot be split by video into train, val" in line


def test_images_are_not_divided_by_video(tmp_path):
    make_dataset(tmp_path)
    text = "train: images/train\nsplit: {val: 0.5, by: video}\nnames: [a]\n"
    (line,) = faults(write(tmp_path / "d.yaml", text))
    assert "split: train is not made of videos" in line


def test_a_split_has_one_kind_of_source(tmp_path):
    make_dataset(tmp_path)
    video_files(tmp_path, "a.mp4")
    text = "train: [images/train, a.mp4]\nval: images/val\nnames: [a]\n"
    (line,) = faults(write(tmp_path / "d.yaml", text))
    assert "train: " in line and "are of several kinds; a split takes images, or videos" in line


@pytest.mark.parametrize("again", ["link", "copy", "same"])
def test_a_video_in_two_splits_is_refused(tmp_path, again):
    (video,) = video_files(tmp_path, "videos/a.mp4")
    other = tmp_path / "more/b.mp4"
    other.parent.mkdir()
    if again == "link":
        other.symlink_to(video)
    elif again == "copy":
        other.write_bytes(video.read_bytes())
    else:
        other = video
    text = f"train: videos\nval: {other}\nnames: [a]\n"
    (line,) = faults(write(tmp_path / "d.yaml", text))
    assert "one video is in several splits: " in line and "keep it in one" in line


def test_images_win_in_a_folder_with_videos(tmp_path):
    make_dataset(tmp_path)
    video_files(tmp_path, "images/train/a.mp4", "images/train/x/b.mp4")
    spec = read_spec(tmp_path / "tiny.yaml")
    assert spec.kinds == {}
    found = find_images(spec.train)
    assert (len(found.files), found.videos) == (6, 2)


def test_keys_for_videos_have_no_effect_on_images(tmp_path):
    yaml = make_dataset(tmp_path)
    yaml.write_text(yaml.read_text() + "stride: 5\nbase: 1\n")
    assert read_spec(yaml).warnings == [
        f"{yaml}: stride, base: no effect, because no split is made of videos"
    ]


def test_places_of_videos_labels_and_packs(tmp_path):
    video_files(tmp_path, "videos/train/a.mp4", "clips/b.mp4", "images/test.pack/pack.json")
    for folder in ("labels/train/a", "clips/b", "labels/test.pack"):
        (tmp_path / folder).mkdir(parents=True)
    text = "train: videos/train\nval: clips/b.mp4\ntest: images/test.pack\nnames: [a]\n"
    yaml = write(tmp_path / "d.yaml", text)
    trees, lists = places(read_spec(yaml))
    assert lists == ()
    assert set(trees) == {
        str(tmp_path / name)
        for name in (
            *("d.yaml", "videos/train", "labels/train", "clips/b.mp4", "clips/b"),
            "images/test.pack",
        )
    }


@pytest.mark.process
def test_reading_videos_needs_no_heavy_module(tmp_path):
    video_files(tmp_path, "clips/a.mp4", "clips/b.mp4")
    text = "videos: clips\nsplit: {val: 0.5, by: video}\nnames: [a]\n"
    code = (
        "import sys; from pathlib import Path; from yolods.data.spec import read_spec; "
        "read_spec(Path(sys.argv[1]));"
        "sys.exit(bool({'torch', 'ultralytics', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    yaml = write(tmp_path / "d.yaml", text)
    words = [sys.executable, "-c", code, str(yaml)]
    assert subprocess.run(words, cwd=Path(__file__).parents[2]).returncode == 0
