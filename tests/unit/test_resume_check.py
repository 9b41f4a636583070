"""What a checkpoint depends on, compared with what would go on from it: without processes, and
without torch."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.indexes import image_files, labels_of
from tests.tiny import make_dataset
from yolods import cli
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.config.run import CONFIG_FILE
from yolods.data.classes import both, difference
from yolods.data.index.fingerprint import Samples, samples_of
from yolods.model.architecture.build import architecture, parse_name
from yolods.training.checks.resume_check import (
    RECORD,
    Comparison,
    Depends,
    compare,
    depends_on,
    read_depends,
)

RUN, DATA = Path("runs/exp"), Path("d.yaml")
NAMES = ("cat", "dog")
AUTO = {"name": "AdamW", "lr": 0.001, "momentum": 0.9, "warmup_bias_lr": 0.0, "arguments": {}}
WORDS = (
    "--data",
    "data/tiny.yaml",
    "--model",
    "yolov5n",
    "--imgsz",
    "64",
    "--batch-size",
    "4",
    "--epochs",
    "3",
)


def make(folder: Path, *images: tuple[str, int]) -> list[str]:
    """Files for images: name, and the class of the one box."""
    for name, cls in images:
        if not (folder / name).exists():
            (folder / name).write_text(f"image of class {cls}")
    return [str(folder / name) for name, _ in images]


def samples_in(folder: Path, *images: tuple[str, int]) -> Samples:
    """The record of such files."""
    return record_of(make(folder, *images), folder, *images)


def record_of(files: list[str], folder: Path, *images: tuple[str, int]) -> Samples:
    """The record of files, whether they exist or not."""
    boxes = {place: (cls, 0.5, 0.5, 0.5, 0.5) for place, (_, cls) in enumerate(images)}
    return samples_of(labels_of(image_files(files, folder, boxes=boxes)))


def layers(name: str = "yolov5n", nc: int = 2) -> dict[str, Any]:
    return architecture(parse_name(name), nc, 3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A configuration of data that are there."""
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data", train=2, val=1)
    return _build(*WORDS)


def _build(*words: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    return build_run_config(parser.parse_args(words), world_size=2, device="cpu")


def whole(config: RunConfig, folder: Path, *images: tuple[str, int], **other: Any) -> Depends:
    """A record with everything in it."""
    known = {"names": NAMES, "architecture": layers(), "optimizer": AUTO}
    split = samples_in(folder, *(images or (("a.jpg", 0), ("b.jpg", 1))))
    return depends_on(config, **{**known, "train": split, "val": split, **other})


def compared(before: Depends, now: Depends) -> Comparison:
    """By way of the file that a checkpoint has."""
    model = {
        "names": list(before.names),
        "architecture": before.architecture,
        RECORD: before.record(),
    }
    return compare(read_depends(json.loads(json.dumps(model))), now, RUN, DATA)


def test_what_is_equal_says_nothing(run, tmp_path):
    assert compared(whole(run, tmp_path), whole(run, tmp_path)) == Comparison(images_before=2)


@pytest.mark.parametrize(
    ("names", "fault", "note"),
    [
        (("cat", "dog", "cow"), "d.yaml names 3 classes (0 cat, 1 dog, 2 cow), but the run in "
         "runs/exp has 2 classes (0 cat, 1 dog): the class head has another size", ""),
        (("cat",), "d.yaml names 1 class (0 cat), but the run in runs/exp has 2 classes (0 cat, "
         "1 dog)", ""),
        (("dog", "cat"), "d.yaml names 2 classes (0 dog, 1 cat), but the run in runs/exp has 2 "
         "classes (0 cat, 1 dog): the same names have other ids", ""),
        (("cat", "hound"), "", "d.yaml names 2 classes (0 cat, 1 hound) instead of 2 classes "
         "(0 cat, 1 dog)"),
    ],
)  # fmt: skip
def test_a_resume_compares_class_names_and_their_order(run, tmp_path, names, fault, note):
    found = compared(
        whole(run, tmp_path), whole(run, tmp_path, names=names, architecture=layers(nc=len(names)))
    )
    assert [line[: len(fault)] for line in found.faults] == ([fault] if fault else [])
    assert [line[: len(note)] for line in found.notes] == ([note] if note else [])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            (("a.jpg", 0), ("b.jpg", 1), ("c.jpg", 0)),
            "train has 3 images instead of 2: the completed epochs count",
        ),
        ((("a.jpg", 0),), "train has 1 image instead of 2"),
        (
            (("a.jpg", 0), ("b.jpg", 0)),
            "train has 2 images as before, but different ones, or with different boxes",
        ),
        ((("a.jpg", 0), ("other.jpg", 1234)), "train has 2 images as before, but different ones"),
        ((("a.jpg", 0), ("gone.jpg", 1)), "train has 2 images as before, but different ones"),
    ],
)
def test_a_resume_compares_images_and_boxes(run, tmp_path, images, words):
    before = whole(run, tmp_path)
    files = make(tmp_path, *images)
    (tmp_path / "gone.jpg").unlink(missing_ok=True)
    now = record_of(files, tmp_path, *images)
    found = compared(before, whole(run, tmp_path, train=now))
    assert found.faults == () and len(found.notes) == 1 and found.notes[0].startswith(words)
    assert found.images_before == 2 and not found.judged_on_others


def test_images_that_were_renamed_are_told_from_images_that_were_replaced(run, tmp_path):
    before = whole(run, tmp_path)
    os.rename(tmp_path / "a.jpg", tmp_path / "z.jpg")
    now = samples_in(tmp_path, ("b.jpg", 1), ("z.jpg", 0))
    (note,) = compared(before, whole(run, tmp_path, train=now)).notes
    assert "2 images as before, but in another order" in note
    now = samples_in(tmp_path, ("z.jpg", 0), ("b.jpg", 1))
    (note,) = compared(before, whole(run, tmp_path, train=now)).notes
    assert "under other names: the run continues exactly" in note


def test_a_set_that_was_moved_is_the_same_and_one_that_was_copied_is_told(run, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    images = (("a.jpg", 0), ("b.jpg", 1))
    before = samples_in(here, *images)
    here.rename(there)
    assert samples_in(there, *images) == before
    os.utime(there / "a.jpg", (1, 1))
    assert samples_in(there, *images).change_from(before) == "times"


def test_other_validation_images_begin_the_search_for_the_best_anew(run, tmp_path):
    now = samples_in(tmp_path, ("a.jpg", 0))
    found = compared(whole(run, tmp_path), whole(run, tmp_path, val=now))
    assert found.judged_on_others
    assert found.notes == (
        "val has 1 image instead of 2: metrics cannot be compared with earlier epochs, so the best "
        "epoch is reset",
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"imgsz": 128},
            "imgsz is 128, but the checkpoint of the run in runs/exp was made with 64",
        ),
        ({"seed": 1}, "seed is 1, but the checkpoint of the run in runs/exp was made with 0"),
        (
            {"optimizer": "SGD"},
            "optimizer is 'SGD', but the checkpoint of the run in runs/exp was made with 'auto'",
        ),
        (
            {"freeze": 3},
            "freeze is 3, but the checkpoint of the run in runs/exp was made with empty",
        ),
        ({"single_cls": True}, "single_cls is true, but the checkpoint"),
        ({"classes": (1,)}, "classes is [1], but the checkpoint"),
    ],
)
def test_a_config_json_that_was_edited_is_held_beside_the_checkpoint(run, tmp_path, change, fault):
    fields = {key: value for key, value in change.items() if key == "imgsz"}
    other = replace(
        run,
        **fields,
        hyper=replace(run.hyper, **{k: v for k, v in change.items() if k not in fields}),
    )
    (line,) = compared(whole(run, tmp_path), whole(other, tmp_path)).faults
    assert line.startswith(fault)


def test_settings_that_may_change_are_told_with_both_values(run, tmp_path):
    other = replace(run, epochs=5, hyper=replace(run.hyper, lr0=0.02, freeze=None))
    found = compared(whole(run, tmp_path), whole(other, tmp_path))
    assert found.faults == ()
    assert found.notes == (
        "the run has 5 epochs instead of 3: learning rates follow the new number",
        "lr0 is 0.02 instead of 0.01: the run continues with 0.02",
    )


def test_what_optimizer_auto_stood_for_stays(run, tmp_path):
    """It goes by the number of steps, so that more epochs or images would exchange AdamW's moments
    for SGD's."""
    found = compared(
        whole(run, tmp_path), whole(run, tmp_path, optimizer={**AUTO, "name": "SGD", "lr": 0.01})
    )
    assert found.notes == (
        "optimizer=auto would now choose SGD at 0.01, and chose AdamW at 0.001 before: the run "
        "continues with AdamW at 0.001",
    )


def test_what_mosaic_partners_auto_stood_for_stays(run, tmp_path):
    """It goes by the number of images; with others, a sample would change in the middle of a
    run."""
    found = compared(whole(run, tmp_path, partners="block"), whole(run, tmp_path, partners="all"))
    assert found.notes == (
        "mosaic_partners=auto would now choose all, and chose block before: the run continues with "
        "block",
    )


@pytest.mark.parametrize(("named", "partners"), [("all", "all"), ("block", "block"), (None, "all")])
def test_records_of_before_auto_have_the_partners_that_the_run_had(run, tmp_path, named, partners):
    record = whole(run, tmp_path).record()
    del record["partners"], record["hyper"]["mosaic_partners"]
    record["hyper"] |= {"mosaic_partners": named} if named else {}
    model = {"names": list(NAMES), "architecture": layers()}
    assert read_depends({**model, RECORD: record}).partners == partners
    assert read_depends(model).partners == "all", "without a record"


def test_other_versions_are_told(run, tmp_path):
    before = whole(run, tmp_path)
    found = compared(
        replace(before, versions={**before.versions, "torch": "2.0.0"}), whole(run, tmp_path)
    )
    assert found.faults == () and len(found.notes) == 1
    assert found.notes[0].startswith(f"torch is {before.versions['torch']} instead of 2.0.0: ")


def test_a_checkpoint_without_the_record_loads_and_says_what_is_not_known(run, tmp_path):
    told = {"imgsz": 64, "epochs": 3, "batch": 4, "model": "yolov5n", **run.hyper.as_ultralytics()}
    model = {
        "names": list(NAMES),
        "architecture": layers(),
        "train_args": json.loads(json.dumps(told)),
    }
    found = compare(read_depends(model), whole(run, tmp_path), RUN, DATA)
    assert found.faults == () and found.images_before is None
    assert [line[:54] for line in found.notes] == [
        "runs/exp: its checkpoint was written by an older yolod"
    ]
    found = compare(read_depends(model), whole(run, tmp_path, names=("dog", "cat")), RUN, DATA)
    assert len(found.faults) == 1


def test_a_model_yaml_that_was_changed_is_named_by_its_layer(run, tmp_path):
    other = layers()
    other["backbone"] = [
        *other["backbone"][:2],
        [-1, 1, "Conv", [64, 3, 1]],
        *other["backbone"][3:],
    ]
    (line,) = compared(whole(run, tmp_path), whole(run, tmp_path, architecture=other)).faults
    assert (
        "has [-1, 1, 'Conv', [64, 3, 1]] as its backbone's layer 2, but the model of the run in "
        "runs/exp has" in line
    )
    grey = {**layers(), "channels": 1}
    (line,) = compared(whole(run, tmp_path), whole(run, tmp_path, architecture=grey)).faults
    assert "has 1 as its channels, but the model of the run in runs/exp has 3" in line


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("ab", "ab", ""),
        ("ab", "abc", "count"),
        ("ab", "ba", "order"),
        ("abc", "bxc", "order"),
        ("ab", "ax", "names"),
        ("aa", "aa", ""),
    ],
)
def test_how_lists_of_names_differ(one, other, expected):
    assert difference(tuple(one), tuple(other)) == expected


def test_long_lists_of_names_show_where_they_differ():
    one = [f"c{n}" for n in range(80)]
    assert both(one, [*one[:40], "new", *one[41:]]) == (
        "80 classes (40 c40, ...)",
        "80 classes (40 new, ...)",
    )
    assert both(one, [*one, "new"]) == ("80 classes (...)", "81 classes (80 new, ...)")


# What a launcher refuses, asked for as by a user.


@pytest.fixture
def left(run: RunConfig) -> Path:
    """The folder of a run that was left after two of its three epochs."""
    run.run_dir.mkdir(parents=True)
    (run.run_dir / CONFIG_FILE).write_text(run.to_json())
    checkpoint = run.run_dir / "checkpoints" / "step00000008"
    checkpoint.mkdir(parents=True)
    names = ("colour0", "colour1")
    depends = depends_on(run, names=names, architecture=layers(), optimizer=AUTO)
    model = {"names": names, "architecture": layers(), "train_args": {}, RECORD: depends.record()}
    (checkpoint / "model.json").write_text(json.dumps(model))
    (checkpoint / "progress.json").write_text(json.dumps({"step": 8, "epochs_done": 2}))
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    return run.run_dir


def refusals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> list[str]:
    """What the launcher says, which starts nothing; empty where it would start."""
    started = []
    monkeypatch.setattr(
        "yolods.launch.supervisor.supervise", lambda *_, **__: started.append(1) or 0
    )
    status = cli.main(["launch", "train", "--num_gpus", "2", *words])
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("yolods: ")
    ]
    assert (status, bool(started)) == ((2, False) if lines else (0, True))
    return lines


def test_a_run_that_may_go_on_is_started(capsys, monkeypatch, left):
    assert refusals(capsys, monkeypatch, "--resume", str(left)) == []


def test_a_class_added_and_another_image_size_are_said_together_before_a_process_starts(
    capsys, monkeypatch, left
):
    yaml = Path("data/tiny.yaml")
    yaml.write_text(yaml.read_text() + "  2: new\n")
    lines = refusals(capsys, monkeypatch, "--resume", str(left), "--imgsz", "128")
    assert len(lines) == 2
    assert lines[0].startswith("error: --imgsz is 128, but the run in runs/exp has 64")
    assert (
        "names 3 classes (0 colour0, 1 colour1, 2 new), but the run in runs/exp has 2 classes"
        in lines[1]
    )


def test_a_finished_run_is_said_to_be_finished_before_a_process_starts(capsys, monkeypatch, left):
    progress = left / "checkpoints" / "step00000008" / "progress.json"
    progress.write_text(json.dumps({"step": 8, "epochs_done": 3}))
    assert refusals(capsys, monkeypatch, "--resume", str(left)) == [], (
        "its last evaluation is still to be done"
    )
    _end(left, 8)
    assert refusals(capsys, monkeypatch, "--resume", str(left)) == [
        "error: --resume: runs/exp has finished its 3 epochs; use a larger --epochs to continue"
    ]
    assert refusals(capsys, monkeypatch, "--resume", str(left), "--epochs", "4") == []


def _end(left: Path, step: int) -> None:
    """As the run itself notes its end."""
    from tests.stores import ALONE, MODEL
    from yolods.checkpoint.store import CheckpointStore, Progress

    CheckpointStore(left / "checkpoints", ALONE, keep=1, model=MODEL).note_end(Progress(step=step))


def test_a_run_without_a_checkpoint_is_not_started(capsys, monkeypatch, left):
    shutil.rmtree(left / "checkpoints")
    assert refusals(capsys, monkeypatch, "--resume", str(left)) == [
        "error: runs/exp/checkpoints: no intact checkpoint to resume from; start again without "
        "--resume"
    ]


@pytest.mark.parametrize(
    "hurt", ["latest", "step00000008/model.json", "step00000008/progress.json"]
)
def test_a_checkpoint_that_is_damaged_is_left_to_the_ranks(capsys, monkeypatch, left, hurt):
    (left / "checkpoints" / hurt).write_text("[]")
    assert refusals(capsys, monkeypatch, "--resume", str(left)) == []


@pytest.mark.parametrize("done", [None, "x", [], 1.5, -1])
def test_a_progress_that_counts_no_epochs_is_left_to_the_ranks(capsys, monkeypatch, left, done):
    _end(left, 8)
    (left / "checkpoints/step00000008/progress.json").write_text(
        json.dumps({"step": 8, "epochs_done": done})
    )
    assert refusals(capsys, monkeypatch, "--resume", str(left)) == []


@pytest.mark.process
def test_a_resume_is_checked_without_torch(left):
    script = (
        "import sys\nfrom yolods.training.checks.preflight import check_train\n"
        "from yolods.commands.parsers import train_parser\n"
        f"check_train(train_parser().read(['--resume', {str(left)!r}]), 2, 'cpu')\n"
        "print(sorted({'torch', 'ultralytics'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
