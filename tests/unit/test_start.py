"""What stands between a configuration and a run: seeds, sizes, disk space and limits."""

import argparse
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.indexes import boxes_of, image_files, labels_of
from tests.tiny import make_dataset
from yolods.checkpoint.read import Checkpoint
from yolods.config.hyper.hyperparameters import Hyper
from yolods.data.index.fingerprint import samples_of
from yolods.data.splits import most_boxes
from yolods.errors import UserError
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.optim.optimizers import OptimizerChoice
from yolods.training import start
from yolods.training.checks.resume_check import RECORD, Comparison, depends_on


def split_of(*boxes: int) -> SimpleNamespace:
    return SimpleNamespace(scan=SimpleNamespace(labels=boxes_of(*([0] * n for n in boxes))))


@pytest.mark.parametrize(
    ("limit", "boxes", "expected"),
    [(300, (5, 10), 300), (300, (5, 412), 412), (100, (5, 412), 100), (500, (1,), 500)],
)
def test_the_default_limit_of_boxes_grows_with_the_data(limit, boxes, expected):
    assert most_boxes(limit, split_of(*boxes), split_of(1)) == expected


def schedule_of(samples: int, batch: int, accumulation: int = 4) -> SimpleNamespace:
    return SimpleNamespace(
        samples=samples,
        batch=batch,
        accumulation=accumulation,
        epochs=100,
        total_samples=100 * samples,
    )


@pytest.mark.parametrize(
    ("samples", "ranks", "remedy"),
    [(5, 1, "--batch-size 5 --set nbs=20"), (5, 2, "--batch-size 4 --set nbs=16")],
)
def test_a_set_that_is_smaller_than_a_batch_is_told_what_that_means(samples, ranks, remedy):
    (line,) = start._small_set(schedule_of(samples, 16), ranks)
    assert line.endswith(remedy)
    assert (
        "5 train images are fewer than a batch of 16" in line
        and "100 epochs are about 8 steps" in line
    )


@pytest.mark.parametrize(("samples", "batch", "ranks"), [(16, 16, 1), (17, 16, 2), (3, 4, 4)])
def test_nothing_is_said_of_a_set_that_fills_a_batch_or_has_no_smaller_one(samples, batch, ranks):
    assert start._small_set(schedule_of(samples, batch), ranks) == []


def test_ultralytics_raises_the_same_limit():
    from ultralytics.models.yolo.detect import DetectionValidator

    args = SimpleNamespace(max_det=300)
    labels = [{"cls": np.zeros((412, 1))}]
    DetectionValidator._check_max_det(args, {"val": SimpleNamespace(labels=labels)})
    assert args.max_det == most_boxes(300, split_of(412))


@pytest.mark.parametrize(("free", "enough"), [(120_000_000, True), (119_999_999, False)])
def test_disk_space(tmp_path, monkeypatch, free, enough):
    """One million parameters x 40 bytes x (2 kept checkpoints and the one being written)."""
    monkeypatch.setattr(start.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if enough:
        start._check_space(tmp_path, 1_000_000, 2)
        return
    with pytest.raises(UserError) as caught:
        start._check_space(tmp_path, 1_000_000, 2)
    assert str(caught.value) == (
        f"{tmp_path}: 0.11 GiB are free, but 3 checkpoints of 1.0 M parameters x 40 bytes need "
        "0.11 GiB; free some space, or choose another --project"
    )


@pytest.mark.parametrize(
    ("error", "reason"), [(PermissionError(13, "Permission denied"), "Permission denied")]
)
def test_a_folder_that_cannot_be_written(error, reason):
    with pytest.raises(UserError) as caught, start.writable(Path("runs/exp")):
        raise error
    assert (
        str(caught.value)
        == f"cannot write to runs/exp: {reason}; choose another folder with --project"
    )


@pytest.mark.parametrize("seed", [0, 7])
def test_every_generator_is_seeded(seed):
    def draw():
        start.seed_everything(seed, deterministic=False)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()
    assert draw() != (start.seed_everything(seed + 1, deterministic=False), random.random())


@dataclass(frozen=True)
class Configured:
    """What `_share_cores` reads and changes."""

    workers: int
    notes: tuple[str, ...] = ("another",)


@pytest.mark.parametrize(
    ("asked", "cores", "ranks", "started"),
    [(2, 2, 2, 1), (8, 16, 2, 8), (8, 16, 4, 4), (0, 2, 2, 0), (1, 1, 8, 1)],
)
def test_fewer_workers_than_asked_for_are_told_of(monkeypatch, asked, cores, ranks, started):
    monkeypatch.setattr(start, "cores", lambda: cores)
    shared = start._share_cores(Configured(asked), ranks)
    assert shared.workers == started
    said = (
        f"--workers {asked}: a rank starts {started}, its share of this host's cores ({cores} / "
        f"{ranks})",
    )
    assert shared.notes == ("another", *(said if started < asked else ()))
    assert start._share_cores(replace(shared, workers=asked), ranks).notes == shared.notes, (
        "once, after a resume too"
    )


AUTO = {"name": "AdamW", "lr": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0, "arguments": {}}


def resumed(folder: Path, optimizer: dict, *words: str, partners: str = "all") -> start._Footing:
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
    return start._footing(config, blueprint, now, (split, split), Checkpoint(kept))


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
    progress = start.Progress(
        position=8 if images_before == 6 else 16, epochs_done=1, best_fitness=0.5, best_epoch=0
    )
    placed = start._placed(progress, Comparison(images_before=images_before), SCHEDULE)
    assert (placed.position, placed.best_fitness, caplog.messages) == (position, 0.5, said)


def test_what_was_judged_on_other_images_is_not_the_best_any_more():
    progress = start.Progress(position=8, epochs_done=1, best_fitness=0.5, best_epoch=0)
    placed = start._placed(progress, Comparison(images_before=6, judged_on_others=True), SCHEDULE)
    assert (placed.best_fitness, placed.best_epoch) == (None, 1)


@pytest.mark.parametrize(
    ("enabled", "size", "device", "environ", "said"),
    [
        (False, 2, "cuda", {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, True),
        (True, 2, "cuda", {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, False),
        (False, 1, "cuda", {}, False),
        (False, 2, "cpu", {}, False),
        (False, 2, "cuda", {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "3"}, False),
        (False, 2, "cuda", {"NCCL_ASYNC_ERROR_HANDLING": "1"}, False),
    ],
)
def test_ranks_that_nothing_would_end_are_told_of(enabled, size, device, environ, said):
    own = SimpleNamespace(watchdog=SimpleNamespace(enabled=enabled))
    config = SimpleNamespace(deepspeed=SimpleNamespace(own=own))
    line = start._unwatched(
        config, SimpleNamespace(size=size, device=torch.device(device)), environ
    )
    assert (line is not None) == said


def test_rank_0_opens_the_loggers_of_its_run(tmp_path):
    from yolods.config import add_train_arguments, build_run_config

    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    flags = ["--data", "demo", "--imgsz", "64", "--project", str(tmp_path), "--loggers", "jsonl"]
    flags += ["--run-dir", str(tmp_path / "exp"), "--start-id", "s"]
    config = build_run_config(parser.parse_args(flags), world_size=1, device="cpu")
    progress = SimpleNamespace(epochs_done=0, step=0, epoch_ends=())
    ranks = SimpleNamespace(is_main=True)
    with start._open_telemetry(config, ranks, ("a",), schedule_of(32, 16), progress) as telemetry:
        telemetry.start({"a": 1}, "| layer |")
    (line,) = (tmp_path / "exp" / "telemetry.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["start"], told["loggers"], told["epochs"]) == ("s", ["jsonl"], 100)
    ranks.is_main = False
    assert (
        type(start._open_telemetry(config, ranks, ("a",), None, None)).__name__ == "NullTelemetry"
    )


def test_gpus_have_a_planned_memory():
    seen = []

    def predict():
        seen.append(True)
        return (2**30,)

    assert start._planned("cpu", (), predict) == () and not seen
    assert start._planned("cuda", (20,), predict) == () and not seen
    assert start._planned("cuda", (), predict) == (2**30,)


def test_hparams_begin_with_the_layout():
    """TensorBoard sorts columns by their characters, and shows the first five."""
    ds = SimpleNamespace(
        autocast=None,
        precision="bf16",
        pipeline=SimpleNamespace(stages=2),
        zero_stage=1,
        offload_optimizer=False,
        offload_param=False,
        micro_batch=4,
    )
    config = SimpleNamespace(deepspeed=ds, model="yolov5n", data=Path("d"), imgsz=64, epochs=3)
    ranks = SimpleNamespace(size=4, device=torch.device("cpu"))
    found = start._run_settings(config, ranks, schedule_of(100, 8, 2))
    columns = sorted({**found, **Hyper().as_dict()})
    assert {name: found[name] for name in columns[:5]} == {
        "Images per step": 16,
        "Pipeline stages": 2,
        "Precision": "bf16",
        "Ranks": 4,
        "ZeRO stage": 1,
    }
