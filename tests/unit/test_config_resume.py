"""Which run `--resume` means, and what may differ when it goes on. Whole command lines:
test_config_run.py."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yolods.config.deepspeed.config import resolve
from yolods.config.hyper.hyperparameters import Hyper, HyperRead
from yolods.config.resume import check_unchanged, find_run, passed_over, relaid
from yolods.errors import Faults

FILE = "config.json"


def run_in(project: Path, name: str, age: int, *, checkpoint: bool = False) -> Path:
    """A run's folder whose configuration was written `age` seconds before the others'."""
    folder = project / name
    folder.mkdir(parents=True)
    (folder / FILE).write_text("{}")
    os.utime(folder / FILE, (1_000_000 - age, 1_000_000 - age))
    if checkpoint:
        (folder / "checkpoints" / "step00000004").mkdir(parents=True)
    return folder


def test_the_newest_run_with_a_checkpoint_is_meant_and_the_newest_where_none_has_one(tmp_path):
    run_in(tmp_path, "old", 9)
    newest = run_in(tmp_path, "new", 0)
    assert find_run(True, tmp_path, FILE, Faults()) == newest
    middle = run_in(tmp_path, "middle", 5, checkpoint=True)
    assert find_run(True, tmp_path, FILE, Faults()) == middle
    assert passed_over(middle, tmp_path, FILE) == (
        f"--resume continues {middle}; skipped newer runs without a checkpoint: {newest}",
    )
    assert passed_over(newest, tmp_path, FILE) == ()


def test_of_many_runs_that_are_passed_over_eight_are_named(tmp_path):
    meant = run_in(tmp_path, "meant", 99, checkpoint=True)
    newer = [run_in(tmp_path, f"n{age}", age) for age in range(10)]
    (line,) = passed_over(meant, tmp_path, FILE)
    assert line.endswith(f": {', '.join(map(str, newer[:8]))} and 2 others")


def test_a_file_deep_in_a_run_names_it_and_one_deeper_does_not(tmp_path):
    run = run_in(tmp_path, "exp", 0)
    (run / "checkpoints" / "step1" / "x").mkdir(parents=True)
    faults = Faults()
    assert find_run(str(run / "checkpoints" / "step1"), tmp_path, FILE, faults) == run
    assert find_run(str(run / "checkpoints" / "step1" / "x"), tmp_path, FILE, faults) is None
    assert [line.split(": ")[1] for line in faults] == ["not a run's folder, it has no config.json"]


def test_an_empty_name_is_not_taken_for_the_newest_run(tmp_path):
    run_in(tmp_path, "exp", 0)
    faults = Faults()
    assert find_run("", tmp_path, FILE, faults) is None
    assert next(iter(faults)).startswith("--resume is empty: name the run's folder")


def saved(run_dir: Path, **changes: Any) -> Any:
    """What a run has kept of itself, as far as it is compared."""
    faults = Faults()
    raw = changes.pop("raw", {})
    hyper = Hyper(optimizer="SGD", lr0=0.02)
    layout = resolve(
        raw, path=None, batch_size=8, world_size=2, device="cpu", faults=faults, hyper=hyper
    )
    assert not faults
    kept = {
        **{
            "run_dir": run_dir,
            "data": Path("/d.yaml"),
            "weights": None,
            "model": "yolov5n",
            "name": "exp",
        },
        **{"imgsz": 64, "batch_size": 8, "epochs": 5, "hyper": hyper, "deepspeed": layout},
    }
    return SimpleNamespace(**kept | changes)


def words(**given: Any) -> Namespace:
    return Namespace(
        **{"data": None, "weights": None, "model": None, "name": None, "project": None, **given}
    )


def refused(
    run: Any, args: Namespace, numbers: dict[str, int], commanded: dict[str, str] | None = None
) -> list[str]:
    faults = Faults()
    check_unchanged(run, args, HyperRead(Hyper(lr0=0.5), {}, {}, commanded or {}), numbers, faults)
    return [line.split(",")[0].split(":")[0] for line in faults]


def test_what_would_make_it_another_run_is_refused_flag_by_flag(tmp_path):
    run = saved(tmp_path / "runs" / "exp2")
    assert (
        refused(
            run, words(data="/d.yaml", name="exp2", project=str(tmp_path / "runs")), {"imgsz": 64}
        )
        == []
    )
    args = words(
        data="e.yaml", model="yolov5s", name="other", project=str(tmp_path), weights="a.pt"
    )
    found = refused(run, args, {"imgsz": 96, "batch_size": 16, "epochs": 9}, {"lr0": "--set lr0"})
    assert [line.split()[0] for line in found] == [
        *(
            "--data",
            "--weights",
            "--model",
            "--name",
            "--project",
            "--imgsz",
            "--batch-size",
            "--set",
        ),
    ]
    assert refused(run, words(), {"epochs": 4}) == ["--epochs 4"]


def test_a_project_may_be_named_by_a_link(tmp_path):
    (tmp_path / "disk" / "exp").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = saved(tmp_path / "runs" / "exp")
    assert refused(run, words(project=str(tmp_path / "disk")), {}) == []


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        ({"type": "AdamW"}, "--deepspeed_config {}: the optimizer is AdamW, but the run uses SGD"),
        (
            {"type": "SGD", "params": {"lr": 0.3}},
            '--deepspeed_config {}: "optimizer" sets lr0 to 0.3, but the run has',
        ),
    ],
)
def test_another_json_may_lay_it_out_anew_and_not_change_its_optimizer(tmp_path, optimizer, line):
    run, file, faults = saved(tmp_path / "exp"), tmp_path / "ds.json", Faults()
    file.write_text('{"zero_optimization": {"stage": 2}}')
    config = relaid(run, file, 4, "cpu", faults)
    assert not faults
    assert (config.zero_stage, config.world_size) == (2, 4)
    assert config.train_batch == run.deepspeed.train_batch
    file.write_text(f'{{"optimizer": {optimizer}}}'.replace("'", '"'))
    relaid(run, file, 2, "cpu", faults)
    assert next(iter(faults)).startswith(line.format(file))


def test_a_json_for_other_ranks_is_refused_with_what_goes_on(tmp_path):
    raw = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
    run, faults = saved(tmp_path / "exp", raw={**raw, "train_batch_size": 8}), Faults()
    relaid(run, None, 1, "cpu", faults)
    *_, remedy = faults
    assert "the run's JSON is for 2 ranks; `yolods plan --ranks 1 --images-per-step 8" in remedy
    said = "\n".join(faults)
    assert "--batch-size" not in said, "nobody typed it"


def test_a_json_that_makes_other_steps_is_refused_with_both_sizes(tmp_path):
    run, file, faults = saved(tmp_path / "exp"), tmp_path / "ds.json", Faults()
    steps = run.deepspeed.train_batch
    file.write_text(f'{{"train_batch_size": {2 * steps}}}')
    relaid(run, file, 2, "cpu", faults)
    assert (
        f'{2 * steps} images per step, but the run has {steps}; write "auto" for the batch keys'
        in "\n".join(faults)
    )
