"""Mistakes that show when the data is read, or later: real runs, one after the other in one
process.

Each gets its clear line, exit status 2 and no traceback; what can be skipped is; users' files stay
as they are.
"""

import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults.in_process import results_of
from tests.tiny import make_dataset

pytestmark = pytest.mark.slow
MODEL = ("--model", "yolov5[0.1,0.1]", "--imgsz", "64", "--batch-size", "2", "--epochs", "2")
TINY = (*MODEL, "--workers", "0", "--noplots")
PARAMETERS = 0.6e6


def lines_of(text: str) -> list[str]:
    """What a screen shows in the end: a bar that was wiped away is not on it."""
    lines = (
        re.sub(r"\x1b\[[0-9;]*[mK]", "", line.rsplit("\r", 1)[-1]).rstrip()
        for line in text.splitlines()
    )
    return [line for line in lines if line and not line.startswith("checking ")]


def damage(folder: Path) -> None:
    """Every kind of damage that is skipped, each in a file of its own."""
    images, labels = folder / "images" / "train", folder / "labels" / "train"
    (images / "000.jpg").write_bytes(b"not an image at all")
    whole = (images / "001.jpg").read_bytes()
    (images / "001.jpg").write_bytes(whole[: len(whole) * 3 // 5])
    (labels / "002.txt").write_text("0 0.5 0.5 0.2 0.2\nfirst class in the middle\n")
    (labels / "003.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.5 1.5 0.2 0.2\n1 320 240 64 64\n")


def every_label(folder: Path, text: str) -> None:
    for file in (folder / "labels" / "train").iterdir():
        file.write_text(text)


def truncated(run: SimpleNamespace) -> Path:
    """A real checkpoint that a copy was cut short of its end; the directory of the archive is
    rewritten."""
    path = run.root / "short.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", b"\x80\x02}q\x00X\x05\x00\x00\x00model")
        archive.writestr("best/version", "3\n")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    """The results of all cases below by name, and the folder that each ran with."""
    root = tmp_path_factory.mktemp("faults")
    here = SimpleNamespace(root=root, data={}, cases=[])

    def case(
        name: str,
        *words: str,
        change=None,
        before: str | None = None,
        word: str = "train",
        **options,
    ) -> None:
        folder = root / name
        make_dataset(folder, **{"train": 6, "val": 3, **options})
        if change:
            change(folder)
        here.data[name] = state_of(folder)
        flags = [*TINY] if word == "train" else []
        place = [
            "--data",
            str(folder / "tiny.yaml"),
            "--project",
            str(root / "runs"),
            "--name",
            name,
        ]
        here.cases.append({"name": name, "words": [word, *place, *flags, *words], "before": before})

    case("sound")
    case("damage", change=damage, train=8)
    case(
        "foreign",
        change=lambda folder: (folder / "labels/train/001.txt").write_text(
            "0 .5 .5 .2 .2\n7 .5 .5 .1 .1\n"
        ),
    )
    case("empty", change=lambda folder: every_label(folder, ""))
    case("wordy", change=lambda folder: every_label(folder, "a b c d e\n"))
    case(
        "blind",
        change=lambda folder: [file.write_bytes(b"") for file in (folder / "images/val").iterdir()],
    )
    case("vanish", "--set", "mosaic=0", before=f"vanish {root / 'vanish/images/train/004.jpg'}")
    case("vanish-all", before=f"vanish-all {root / 'vanish-all/images/train'}")
    case("disk-left", before=f"disk-left {int(PARAMETERS * 24)}")
    case("disk-fills", before="disk-fills")
    case("folder", "--project", str(root / "sound" / "tiny.yaml" / "runs"))
    case("cut", "--weights", str(truncated(here)))
    case("stride", change=lambda folder: (folder / "own.yaml").write_text(FOUR_LEVELS))
    here.cases[-1]["words"][here.cases[-1]["words"].index("--model") + 1] = str(
        root / "stride" / "own.yaml"
    )
    weights = str(root / "runs" / "sound" / "weights" / "best.pt")
    case("val-classes", "--weights", weights, word="val", nc=3)
    case("val-split", "--weights", weights, "--split", "test", word="val")
    case("resume-done", "--resume", str(root / "runs" / "sound"))
    here.cases[-1]["words"] = ["train", "--resume", str(root / "runs" / "sound")]
    here.results = results_of(*_rows(here.cases), folder=root, timeout=150)
    return here


def _rows(cases: list[dict]) -> list[list[dict]]:
    """Those that take up what `sound` has left after it, the others beside them."""
    first = [
        case
        for case in cases
        if case["name"] in ("sound", "val-classes", "val-split", "resume-done", "folder")
    ]
    return [first, [case for case in cases if case not in first]]


FOUR_LEVELS = """
scale: ""
backbone:
  - [-1, 1, Conv, [8, 3, 4]]
  - [-1, 1, Conv, [8, 3, 4]]
  - [-1, 1, Conv, [8, 3, 8]]
head:
  - [[2], 1, Detect, [nc]]
"""


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def errors_of(runs, name: str) -> list[str]:
    """The lines of a run that has to end with 2, without a traceback, before it trained."""
    result = runs.results[name]
    everything = result["out"] + result["err"]
    assert result["code"] == 2, everything
    assert "Traceback" not in everything
    shown = said_after_the_start(result["err"])
    assert all(line.startswith("error: ") for line in shown), shown
    return [line.removeprefix("error: ") for line in shown]


def said_after_the_start(err: str) -> list[str]:
    """The lines but for the one that says that a process starts, which comes only where nothing was
    wrong before."""
    return [line for line in lines_of(err) if not line.startswith("yolods: version ")]


def test_a_sound_set_trains(runs):
    result = runs.results["sound"]
    assert result["code"] == 0, result["out"] + result["err"]
    assert said_after_the_start(result["err"]) == []
    assert "warning" not in result["out"].lower()
    assert "train: 6 images, 12 boxes, 0 backgrounds\n" in result["out"]
    assert not (runs.root / "runs" / "sound" / "problems.txt").exists()


def test_no_run_changes_a_file_of_the_user(runs):
    for name, before in runs.data.items():
        gone = {file for file in before if not Path(file).exists()}
        assert len(gone) == {"vanish": 1, "vanish-all": 6}.get(name, 0)
        assert {f: v for f, v in before.items() if f not in gone} == state_of(runs.root / name), (
            name
        )


def test_damaged_files_and_lines_are_counted_listed_and_skipped(runs):
    result, folder = runs.results["damage"], runs.root / "damage"
    assert result["code"] == 0, result["out"] + result["err"]
    assert (
        "train: 6 images, 10 boxes, 0 backgrounds; 2 images and 3 label lines skipped, see "
        "problems.txt\n"
    ) in result["out"]
    problems = (runs.root / "runs" / "damage" / "problems.txt").read_text().splitlines()
    labels = folder / "labels" / "train"
    assert problems[0] == f"{folder}/images/train/000.jpg: damaged or not an image; image skipped"
    assert problems[1].startswith(f"{folder}/images/train/001.jpg: damaged or not an image (")
    assert "truncated" in problems[1]
    assert problems[2:] == [
        f"{labels}/002.txt:2: 'first' is not a number; line skipped",
        f"{labels}/003.txt:2: coordinate 1.5 is outside [0, 1] (1% tolerance); labels are "
        "fractions of the image size; line skipped",
        f"{labels}/003.txt:3: coordinate 320 is outside [0, 1] (1% tolerance); labels are "
        "fractions of the image size; line skipped",
    ]
    assert "Traceback" not in result["out"] + result["err"]


def test_a_class_id_outside_names(runs):
    folder = runs.root / "foreign"
    assert errors_of(runs, "foreign") == [
        f"{folder}/labels/train/001.txt:2: class id 7 is outside the 2 names of {folder}/tiny.yaml "
        "(ids 0 to 1); correct names or the labels"
    ]


def test_an_empty_train_set(runs):
    assert errors_of(runs, "empty") == [
        f"train: 6 images but no usable box; labels are expected in files such as "
        f"{runs.root}/empty/labels/train/000.txt"
    ]


def test_a_train_set_of_unusable_labels_shows_the_first(runs):
    labels = runs.root / "wordy" / "labels" / "train"
    assert errors_of(runs, "wordy") == [
        "train: 6 images but no usable box; labels are expected in files such as "
        f"{labels}/000.txt; the first problem: {labels}/000.txt:1: 'a' is not a number; line "
        "skipped"
    ]


def test_a_split_without_a_sound_image(runs):
    (line,) = errors_of(runs, "blind")
    image = runs.root / "blind" / "images" / "val" / "000.jpg"
    assert line.startswith(
        f"val: none of 3 images can be used; the first problem: {image}: damaged or not an image"
    )


def test_a_failed_start_is_no_run_to_resume(runs):
    for name in ("foreign", "empty", "blind", "disk-left", "stride"):
        assert not (runs.root / "runs" / name).exists(), name


def test_a_file_that_vanishes_is_reported_replaced_and_counted(runs):
    result, file = runs.results["vanish"], runs.root / "vanish" / "images" / "train" / "004.jpg"
    assert result["code"] == 0, result["out"] + result["err"]
    everything = result["out"] + result["err"]
    assert everything.count(f"{file} could not be read; replaced by another sample") == 1
    position = json.loads(
        next((runs.root / "runs" / "vanish" / "checkpoints").glob("*/progress.json")).read_text()
    )
    assert position["replaced"] >= 2  # once an epoch, and what a step took beyond the last
    assert (
        f"{position['replaced']} samples were replaced: 1 files could no longer be read"
        in everything
    )
    assert "Traceback" not in everything


def test_a_data_set_that_vanishes_ends_the_run(runs):
    folder = runs.root / "vanish-all" / "images" / "train"
    (line,) = errors_of(runs, "vanish-all")
    assert line == f"none of the 6 images can be read; the first is {folder}/000.jpg"


def test_no_disk_space(runs):
    (line,) = errors_of(runs, "disk-left")
    assert re.fullmatch(
        re.escape(str(runs.root / "runs" / "disk-left"))
        + r": 0\.01 GiB are free, but 4 checkpoints of 0\.6 M parameters x 40 bytes need 0\.09 "
        "GiB; free some space, or choose another --project",
        line,
    )


def test_a_disk_that_fills_later(runs):
    result, folder = runs.results["disk-fills"], runs.root / "runs" / "disk-fills"
    everything = result["out"] + result["err"]
    assert result["code"] == 2, everything
    assert (
        f"{folder}/weights could not be written, the earlier files are kept: [Errno 28] No space "
        "left"
    ) in everything
    assert "; the earlier checkpoint is kept" in everything
    assert "Traceback" not in everything
    assert errors_of(runs, "disk-fills") == [
        f"{folder}/weights/best.pt was never written; the log {folder}/train.log says why"
    ]


def test_a_folder_that_cannot_be_written(runs):
    (line,) = errors_of(runs, "folder")
    place = runs.root / "sound" / "tiny.yaml" / "runs"
    assert (
        line
        == f"cannot write to {place}/folder: Not a directory; choose another folder with --project"
    )


def test_weights_whose_pickle_is_cut_short(runs):
    (line,) = errors_of(runs, "cut")
    assert line.startswith(
        f"--weights {runs.root}/short.pt: not a loadable ultralytics checkpoint: "
    )


def test_a_users_model_with_a_larger_stride(runs):
    assert errors_of(runs, "stride") == [
        "--imgsz 64: this model needs a multiple of 128; use 128 or 256"
    ]


def test_val_with_another_yaml(runs):
    weights = runs.root / "runs" / "sound" / "weights" / "best.pt"
    assert errors_of(runs, "val-classes") == [
        f"--weights {weights} has 2 classes (0 colour0, 1 colour1), but "
        f"{runs.root}/val-classes/tiny.yaml names 3 classes (0 colour0, 1 colour1, 2 colour2); use "
        "the data yaml of its training"
    ]


def test_val_of_a_split_that_is_not_there(runs):
    yaml = runs.root / "val-split" / "tiny.yaml"
    assert errors_of(runs, "val-split") == [
        f"--split test: {yaml} names no test images; add `test: FOLDER`"
    ]


def test_resuming_a_finished_run(runs):
    assert errors_of(runs, "resume-done") == [
        f"--resume: {runs.root}/runs/sound has finished its 2 epochs; use a larger --epochs to "
        "continue"
    ]
