"""What a run's checkpoints depend on, and where a resumed run continues."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.indexes import image_files, labels_of
from tests.tiny import make_dataset
from yolods.checkpoint.progress import Progress
from yolods.checkpoint.read import Checkpoint
from yolods.data.index.fingerprint import samples_of
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.optim.optimizers import OptimizerChoice
from yolods.training.checks.resume_check import RECORD, Comparison, depends_on
from yolods.training.setup.footing import Footing, find_footing, placed
from yolods.training.setup.inputs import Inputs

AUTO = {"name": "AdamW", "lr": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0, "arguments": {}}


def resumed(folder: Path, optimizer: dict, *words: str, partners: str = "all") -> Footing:
    """What a run of two images stands on that goes on from a checkpoint made with this optimizer
    and these mosaic partners."""
    from yolods.config import add_train_arguments, build_run_config

    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    yaml = make_dataset(folder / "data", train=2, val=1)
    flags = ["--data", str(yaml), "--model", "yolov5n", "--project", str(folder), *words]
    config = build_run_config(parser.parse_args(flags), world_size=1, device="cpu")
    names = ("colour0", "colour1")
    blueprint = Blueprint(architecture(parse_name("yolov5n"), 2, 3), names, 0)
    source = image_files(["a.jpg", "b.jpg"], folder)
    labels = labels_of(source)
    split = SimpleNamespace(
        scan=SimpleNamespace(labels=labels, source=source), dataset=SimpleNamespace(channels=3)
    )
    samples = samples_of(labels)
    known = {"names": names, "train": samples, "val": samples}
    before = depends_on(config, optimizer=optimizer, partners=partners, **known)
    model = {
        "names": names,
        "architecture": blueprint.layers,
        "train_args": {},
        RECORD: before.record(),
    }
    kept = folder / "checkpoints" / "step00000004"
    kept.mkdir(parents=True)
    (kept / "model.json").write_text(json.dumps(model))
    (kept / "progress.json").write_text(json.dumps({"step": 4, "epochs_done": 1}))
    now = OptimizerChoice("SGD", 0.01, 0.937, 0.0)
    inputs = Inputs(None, blueprint, None, split, split)
    return find_footing(config, inputs, now, Checkpoint(kept))


def test_a_run_keeps_the_optimizer_that_auto_chose_for_it(tmp_path, caplog):
    """More epochs or images would choose another one, whose state the checkpoint does not hold."""
    footing = resumed(tmp_path, AUTO)
    assert (footing.choice.name, footing.choice.lr) == ("AdamW", 0.001667)
    assert footing.record["optimizer"] == AUTO
    assert caplog.messages == [
        "optimizer=auto would now choose SGD at 0.01, and chose AdamW at 0.001667 before: the run "
        "continues with AdamW at 0.001667"
    ]


def test_an_optimizer_that_was_named_is_the_one_that_is_named(tmp_path):
    footing = resumed(tmp_path, {**AUTO, "name": "SGD"}, "--optimizer", "SGD", "--set", "lr0=0.01")
    assert (footing.choice.name, footing.choice.momentum) == ("SGD", 0.937)


def test_a_run_keeps_the_mosaic_partners_that_auto_chose_for_it(tmp_path, caplog):
    """Its two images would be kept decoded now, wherever it began."""
    footing = resumed(tmp_path, AUTO, partners="block")
    assert footing.partners == ("block", "as the run began")
    assert footing.record["partners"] == "block"
    assert (
        "mosaic_partners=auto would now choose all, and chose block before: the run continues with "
        "block"
    ) in caplog.messages


def test_mosaic_partners_that_were_named_are_those_that_are_named(tmp_path, caplog):
    footing = resumed(tmp_path, AUTO, "--set", "mosaic_partners=block", partners="all")
    assert footing.partners == ("block", "") and footing.record["partners"] == "block"
    assert not [line for line in caplog.messages if "mosaic_partners" in line]


SCHEDULE = SimpleNamespace(samples=6, batch=4, accumulation=1)


@pytest.mark.parametrize(
    ("images_before", "position", "said"),
    [
        (6, 8, []),
        (12, 6, []),
        (None, 6, ["the number of train images has changed: the current epoch starts over"]),
    ],
)
def test_a_run_stands_in_its_epoch_whatever_the_number_of_images(
    images_before, position, said, caplog
):
    progress = Progress(
        position=8 if images_before == 6 else 16, epochs_done=1, best_fitness=0.5, best_epoch=0
    )
    found = placed(progress, Comparison(images_before=images_before), SCHEDULE)
    assert (found.position, found.best_fitness, caplog.messages) == (position, 0.5, said)


def test_what_was_judged_on_other_images_is_not_the_best_any_more():
    progress = Progress(position=8, epochs_done=1, best_fitness=0.5, best_epoch=0)
    found = placed(progress, Comparison(images_before=6, judged_on_others=True), SCHEDULE)
    assert (found.best_fitness, found.best_epoch) == (None, 1)
