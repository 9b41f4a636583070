"""Flags, hyper-parameters and JSON together: one frozen object, every fault at once, and going on
with a run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from yolods.config.build import build_run_config
from yolods.config.flags import HYPER_FLAGS, add_train_arguments, add_val_arguments
from yolods.config.hyper.hyperparameters import RULES
from yolods.config.run import CONFIG_FILE, RunConfig, next_run_dir
from yolods.errors import UserError


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text("names: [a]\n")


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    return parser.parse_args(words)


def build(
    *words: str, ranks: int = 2, device: str = "cpu", environ: dict[str, str] | None = None
) -> RunConfig:
    return build_run_config(parse(*words), world_size=ranks, device=device, environ=environ)


def faults_of(*words: str, **context) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(*words, **context)
    return str(caught.value).splitlines()


def write_json(block: dict, name: str = "ds.json") -> str:
    Path(name).write_text(json.dumps(block))
    return name


def saved(*words: str) -> RunConfig:
    """A run whose folder and config.json exist."""
    config = build("--data", "d.yaml", *words)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / CONFIG_FILE).write_text(config.to_json())
    return config


def test_defaults():
    config = build("--data", "demo")
    assert config.is_demo and config.weights is None and config.resume is None
    assert (config.model, config.epochs, config.imgsz, config.batch_size, config.workers) == (
        "yolov5s",
        100,
        640,
        16,
        0,
    )
    assert build("--data", "demo", device="cuda").workers == 8
    assert (config.seed, config.run_dir, config.device) == (0, Path("runs/exp"), "cpu")
    assert config.deepspeed.zero_stage == 1 and config.deepspeed.path is None
    assert not Path("runs").exists()


def test_flags_that_are_not_given_are_none():
    assert {value for value in vars(parse()).values()} == {None}


def test_flags_of_yolov5_users():
    words = (
        "--data d.yaml --cfg yolov5m --img 320 --batch 8 --epochs 3 --workers 0 --project p --name "
        "n --exist-ok"
    )
    config = build(*words.split())
    assert (config.model, config.imgsz, config.batch_size, config.epochs, config.workers) == (
        "yolov5m",
        320,
        8,
        3,
        0,
    )
    assert config.run_dir == Path("p/n") and config.exist_ok
    assert config.data == Path("d.yaml").absolute()
    assert dict(config.given) == {
        "data": "d.yaml", "model": "yolov5m", "imgsz": 320, "batch_size": 8, "epochs": 3,
        "workers": 0, "project": "p", "name": "n", "exist_ok": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--seed 3", "seed", 3),
        ("--freeze 10", "freeze", 10),
        ("--freeze 0 1 23.cv2", "freeze", (0, 1, "23.cv2")),
        ("--cache", "cache", "ram"),
        ("--cos-lr", "cos_lr", True),
        ("--optimizer adamw", "optimizer", "AdamW"),
        ("--patience 5", "patience", 5),
        ("--save-period 5", "save_period", 5),
        ("--single-cls", "single_cls", True),
        ("--multi-scale", "multi_scale", 0.5),
        ("--multi-scale 0.2", "multi_scale", 0.2),
        ("--sync-bn", "sync_bn", True),
        ("--close-mosaic 0", "close_mosaic", 0),
        ("--noval", "val", False),
        ("--noplots", "plots", False),
        ("--set mosaic=0.5 --set lr0=0.02", "mosaic", 0.5),
    ],
)
def test_hyper_parameters_by_flag(words, key, value):
    hyper = build("--data", "demo", *words.split()).hyper
    assert getattr(hyper, key) == value


def test_steps_to_trace_are_given_by_flag_or_file_and_are_few():
    assert build("--data", "demo").trace == 0
    assert build("--data", "demo", "--trace", "5").trace == 5
    Path("hyp.yaml").write_text("trace: 7\n")
    assert build("--data", "demo", "--hyp", "hyp.yaml").trace == 7
    for number in ("0", "101"):
        with pytest.raises(UserError, match=f"--trace is {number}: it must be"):
            build("--data", "demo", "--trace", number)


def test_every_hyper_flag_is_a_hyper_parameter():
    assert set(HYPER_FLAGS) <= set(RULES)


@pytest.mark.parametrize(
    "flag", ["--device", "--adam", "--rect", "--evolve", "--label-smoothing", "--amp"]
)
def test_flags_that_are_not_taken_say_why(flag):
    with pytest.raises(UserError, match=f"^{flag} is not supported: .{{15}}"):
        parse("--data", "demo", flag, "1")


def test_the_launchers_local_rank_is_ignored():
    plain = build("--data", "demo")
    assert build("--local_rank=1", "--data", "demo") == plain
    assert build("--local-rank", "1", "--data", "demo") == plain


def test_a_hyp_file_may_hold_flags_and_the_flag_wins():
    Path("hyp.yaml").write_text("epochs: 7\nbatch: 8\nimgsz: 320\nworkers: 1\nlr0: 0.02\n")
    config = build("--data", "demo", "--hyp", "hyp.yaml", "--epochs", "9")
    assert (config.epochs, config.batch_size, config.imgsz, config.workers) == (9, 8, 320, 1)
    assert config.hyper.lr0 == 0.02


def test_the_json_says_the_batch_where_no_flag_does():
    file = write_json({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2})
    config = build("--data", "demo", "--deepspeed_config", file)
    assert (config.batch_size, config.deepspeed.train_batch) == (6, 12)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_evaluation_has_the_same_batches_on_any_number_of_ranks(ranks):
    assert build("--data", "demo", "--batch-size", "8", ranks=ranks).eval_batch == 16


def test_the_jsons_optimizer_is_in_the_hyper_parameters():
    file = write_json({"optimizer": {"type": "SGD", "params": {"lr": 0.3, "momentum": 0.5}}})
    Path("hyp.yaml").write_text("lr0: 0.1\n")
    config = build("--data", "demo", "--deepspeed_config", file, "--hyp", "hyp.yaml")
    assert (config.hyper.optimizer, config.hyper.lr0, config.hyper.momentum) == ("SGD", 0.3, 0.5)
    assert config.notes == (
        "lr0 is 0.3 from ds.json, which overrides 0.1 from hyp.yaml line 1: lr0",
    )


def test_every_source_says_its_faults_at_once():
    Path("hyp.yaml").write_text("mosaik: 1\nepochs: 0\n")
    file = write_json(
        {"train_micro_batch_size_per_gpu": 4, "fp16": {"enabled": True}, "yolods": {"x": 1}}
    )
    words = (
        f"--data no.yaml --hyp hyp.yaml --deepspeed_config {file} --set lr0=9 --batch-size 6 "
        "--imgsz 100 --name a/b"
    )
    assert faults_of(*words.split(), "--weights", "no.pt") == [
        "hyp.yaml line 1: mosaik is not a hyper-parameter (did you mean 'mosaic'?); "
        "docs/configuration.md lists them",
        "--set lr0 is 9: it must be a number in (0, 1]",
        "--hyp hyp.yaml: epochs is 0: it must be a whole number of at least 1",
        "ds.json: \"yolods\": unknown key 'x'; known: clipping, overflow, checkpoint, watchdog, "
        "accumulation, compression",
        'ds.json: "fp16" with ZeRO stage 0 divides gradients by a loss scale that was never '
        'applied; set "zero_optimization": {"stage": 1}',
        'ds.json: "fp16": the CPU backend has no fp16; use bf16 or fp32',
        "ds.json: train_micro_batch_size_per_gpu 4 x 2 ranks = 8, but --batch-size is 6; use "
        "--batch-size 8, "
        'omit it, or set train_micro_batch_size_per_gpu to "auto"',
        "--data no.yaml: no such file",
        "--weights no.pt: no such file (weights are never downloaded; fetch the file first)",
        "--model is required: the name of --weights no.pt does not determine the architecture",
        "--imgsz 100: yolov5s needs a multiple of 32; use 96 or 128",
        "--name 'a/b': it must be a single folder name; use --project for the path",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--data is required: a data yaml, or --data demo for the embedded data set"),
        ("--data .", "--data .: this is a folder; name the yaml in it"),
        ("--data demo --imgsz 16", "--imgsz 16: yolov5s needs a multiple of 32; use 32"),
        ("--data demo --imgsz 0", "--imgsz is 0: it must be a whole number of at least 1"),
        (
            "--data demo --imgsz 672 --model yolov5x6",
            "--imgsz 672: yolov5x6 needs a multiple of 64; use 640 or 704",
        ),
        (
            "--data demo --imgsz 672 --model yolov5[2.0,2.0]-p6",
            "needs a multiple of 64; use 640 or 704",
        ),
        ("--data demo --project d.yaml", "--project d.yaml: this is a file; name a folder"),
        ("--data demo --workers -1", "--workers is -1: it must be a whole number of at least 0"),
        (
            "--data demo --batch-size 3",
            "--batch-size 3 cannot be divided evenly among 2 ranks: 3 / 2 = 1.50; use 2 or 4",
        ),
        (
            "--data demo --weights d.yaml --set pretrained=x.pt --model yolov5n",
            "weights are set twice",
        ),
    ],
)
def test_one_mistake_one_line(words, message):
    faults = faults_of(*words.split())
    assert len(faults) == 1 and message in faults[0]


@pytest.mark.parametrize(
    "words", ["--imgsz 672 --model yolov5s", "--imgsz 672 --model yolov5[2.0,1.6]", "--imgsz 1280"]
)
def test_image_sizes_that_fit(words):
    assert build("--data", "demo", *words.split()).imgsz % 32 == 0


def test_the_accelerator_has_to_be_the_one_that_computes():
    line = "DS_ACCELERATOR is cuda, but this process computes on cpu; unset it, or set it to cpu"
    assert faults_of("--data", "demo", environ={"DS_ACCELERATOR": "cuda"}) == [line]
    build("--data", "demo", environ={"DS_ACCELERATOR": "cpu"})


@pytest.mark.parametrize(
    ("file", "model"),
    [("yolov5nu.pt", "yolov5n"), ("yolov5x6u.pt", "yolov5x6"), ("yolov5m.pt", "yolov5m")],
)
def test_published_weights_tell_their_architecture(file, model):
    Path(file).touch()
    config = build("--data", "demo", "--weights", file)
    assert (config.model, config.weights) == (model, Path(file).absolute())
    assert build("--data", "demo", "--weights", file, "--model", "yolov5l").model == "yolov5l"
    assert build("--data", "demo", "--set", f"pretrained={file}").weights == Path(file).absolute()
    assert build("--data", "demo", "--weights", file, "--set", "pretrained=false").weights is None


def test_run_folders_are_numbered():
    project = Path("runs")
    assert next_run_dir(project, "exp") == project / "exp"
    (project / "exp").mkdir(parents=True)
    assert next_run_dir(project, "exp") == project / "exp2"
    (project / "exp2").mkdir()
    assert next_run_dir(project, "exp") == project / "exp3"
    assert next_run_dir(project, "exp", exist_ok=True) == project / "exp"
    assert next_run_dir(project, "other") == project / "other"


def test_config_json_gives_the_same_run_again():
    file = write_json(
        {
            "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
            "yolods": {"checkpoint": {"keep": 3}},
        }
    )
    Path("yolov5nu.pt").touch()
    words = (
        f"--deepspeed_config {file} --weights yolov5nu.pt --batch-size 8 --freeze 0 2 --set "
        "scale=[0.5,2.0] --cache"
    )
    config = saved(*words.split())
    again = RunConfig.from_json((config.run_dir / CONFIG_FILE).read_text(), config.run_dir)
    assert again == dataclasses.replace(config, resume=config.run_dir)
    assert again.to_json() == config.to_json()
    # The main rank hands its configuration to the others.
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("key", "now", "before"),
    [("precise_bn", 1024, 0), ("mosaic_partners", "block", "all")],
)
def test_a_run_of_before_a_hyper_parameter_goes_on_without_it(key, now, before):
    config = saved("--batch-size", "8", "--set", "mosaic_partners=block")
    content = json.loads((config.run_dir / CONFIG_FILE).read_text())
    again = RunConfig.from_json(json.dumps(content), config.run_dir)
    assert getattr(again.hyper, key) == now
    del content["hyper"][key]
    again = RunConfig.from_json(json.dumps(content), config.run_dir)
    assert getattr(again.hyper, key) == before


def test_config_json_is_resolved():
    shown = json.loads(build("--data", "demo", "--batch-size", "8").to_json())
    assert shown["deepspeed"]["train_micro_batch_size_per_gpu"] == 4
    assert shown["deepspeed"]["gradient_accumulation_steps"] == 8
    assert shown["yolods"]["checkpoint"] == {
        **{"every_epochs": 1, "every_steps": 0, "keep": 2},
        **{"keep_best": True, "asynchronous": True},
    }
    assert shown["hyper"]["lr0"] == 0.01 and shown["given"] == {"data": "demo", "batch_size": 8}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hyper": {"lr0": 0.1}}', '{"hyper": 3}'])
def test_a_file_that_is_no_configuration(text):
    with pytest.raises(UserError, match=r"^x/config\.json: not a run's configuration"):
        RunConfig.from_json(text, Path("x"))


def test_a_configuration_whose_values_are_no_longer_permitted():
    text = build("--data", "demo").to_json().replace('"lr0": 0.01', '"lr0": 7')
    with pytest.raises(UserError, match=r"cannot be used any more:\nhyper\.lr0 is 7"):
        RunConfig.from_json(text, Path("x"))


def test_resume_takes_the_newest_run():
    first, second = saved("--epochs", "3"), saved("--epochs", "4")
    os.utime(first.run_dir / CONFIG_FILE, (2e9, 2e9))
    assert build("--resume").run_dir == first.run_dir
    os.utime(second.run_dir / CONFIG_FILE, (3e9, 3e9))
    assert build("--resume").run_dir == second.run_dir


@pytest.mark.parametrize("inside", ["", "weights/last.pt", "checkpoints"])
def test_resume_takes_a_folder_or_what_is_in_it(inside):
    run = saved("--batch-size", "8", "--seed", "5")
    resumed = build("--resume", str(run.run_dir / inside))
    assert resumed == dataclasses.replace(run, resume=run.run_dir, given=resumed.given)
    assert resumed.seed == 5 and resumed.batch_size == 8


def test_resume_from_another_working_directory(monkeypatch):
    """The folder may have been moved, and the data yaml was named relative to where the run was
    started."""
    run = saved()
    moved = Path("elsewhere")
    run.run_dir.rename(moved)
    assert build("--resume", str(moved)).run_dir == moved
    monkeypatch.chdir(moved)
    assert build("--resume", ".").data == run.data


def test_resume_permits_more_epochs_and_other_workers():
    run = saved("--epochs", "3")
    resumed = build("--resume", str(run.run_dir), "--epochs", "5", "--workers", "1")
    assert (resumed.epochs, resumed.workers) == (5, 1)


def test_resume_permits_what_the_run_has_already():
    file = write_json({"bf16": {"enabled": True}})
    words = ("--batch-size", "8", "--seed", "5", "--model", "yolov5n", "--deepspeed_config", file)
    run = saved(*words)
    assert build("--data", "d.yaml", *words, "--resume", str(run.run_dir)).resume == run.run_dir


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--epochs 2",
            "--epochs 2: the run in runs/exp has 100 epochs; the number can only be raised",
        ),
        (
            "--imgsz 320",
            "--imgsz is 320, but the run in runs/exp has 640; omit it to continue that run",
        ),
        ("--batch-size 8", "--batch-size is 8, but the run in runs/exp has 16"),
        ("--model yolov5x", "--model is 'yolov5x', but the run in runs/exp has 'yolov5s'"),
        ("--name other", "--name is 'other', but the run in runs/exp has 'exp'"),
        ("--data demo", "--data is "),
        ("--weights w.pt", "but the run in runs/exp has empty"),
        ("--seed 1", "--seed is 1, but the run in runs/exp has 0"),
        ("--set lr0=0.5", "--set lr0 is 0.5, but the run in runs/exp has 0.01"),
        (
            "--deepspeed_config other.json",
            'other.json: 16 images per step, but the run has 64; write "auto"',
        ),
        ("--deepspeed_config lion.json", "the optimizer is SGD, but the run uses auto"),
    ],
)
def test_resume_refuses_what_would_make_it_another_run(words, message):
    saved()
    write_json({"gradient_accumulation_steps": 1}, "other.json")
    write_json({"optimizer": {"type": "SGD", "params": {"lr": 0.01}}}, "lion.json")
    faults = faults_of("--resume", "runs/exp", *words.split())
    assert len(faults) == 1 and message in faults[0]


@pytest.mark.parametrize(
    ("json_file", "ranks", "device", "shape", "batch"),
    [
        ({}, 2, "cpu", (0, 2, 8, None), 16),
        (
            {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}},
            4,
            "cuda",
            (3, 4, 8, None),
            32,
        ),
        ({"pipeline": {"stages": 2}}, 4, "cpu", (0, 2, 8, 2), 16),
        (None, 1, "cuda", (1, 1, 8, None), 8),
        ({"train_micro_batch_size_per_gpu": 4}, 2, "cpu", (0, 2, 4, None), 8),
        ({"train_micro_batch_size_per_gpu": 16}, 1, "cpu", (0, 1, 16, None), 16),
        (None, 16, "cpu", (1, 16, 1, None), 16),  # 8 x 16 ranks do not divide a step
    ],
)
def test_resume_goes_on_under_another_layout(json_file, ranks, device, shape, batch):
    """The images of a step stay, and those of a micro-batch if they can: 64 and 8, on two ranks at
    first."""
    saved()
    words = () if json_file is None else ("--deepspeed_config", write_json(json_file, "other.json"))
    run = build("--resume", "runs/exp", *words, ranks=ranks, device=device)
    config = run.deepspeed
    stages = config.pipeline.stages if config.pipeline else None
    assert (config.zero_stage, config.dp_size, config.micro_batch, stages) == shape
    assert (run.batch_size, config.train_batch, config.world_size, run.device) == (
        batch,
        64,
        ranks,
        device,
    )


def test_a_run_that_went_on_under_another_layout_keeps_its_images_a_step_when_it_goes_on_again():
    """24 images a batch and nbs 64 are 72 a step; on one rank 12 a batch, of which nbs alone would
    take 5 and not 6."""
    saved("--batch-size", "24")
    again = build("--resume", "runs/exp", ranks=1)
    assert (again.batch_size, again.deepspeed.train_batch) == (12, 72)
    (again.run_dir / CONFIG_FILE).write_text(again.to_json())
    assert build("--resume", "runs/exp", ranks=1).deepspeed.train_batch == 72


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"lr": 0.5},
            'other.json: "optimizer" sets lr0 to 0.5, but the run has 0.01; write "auto"',
        ),
        (
            {"lr": "auto", "momentum": 0.5},
            'other.json: "optimizer" sets momentum to 0.5, but the run has 0.937',
        ),
        (
            {"weight_decay": 0.1},
            'other.json: "optimizer" sets weight_decay to 0.1, but the run has 0.0005',
        ),
        ({"lr": "auto"}, None),
    ],
)
def test_resume_refuses_another_learning_rate_in_the_json(params, message):
    saved("--optimizer", "SGD")
    words = ("--resume", "runs/exp", "--deepspeed_config")
    file = write_json({"optimizer": {"type": "SGD", "params": params}}, "other.json")
    if message is None:
        assert build(*words, file).hyper.lr0 == 0.01
        return
    (fault,) = faults_of(*words, file)
    assert message in fault


def test_resume_names_ranks_that_the_batch_cannot_be_dealt_to():
    saved()
    assert (
        "--batch-size 16 of the run cannot be divided evenly among 3 ranks"
        in faults_of("--resume", ranks=3)[0]
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            (),
            "--resume: no run in runs (a run contains config.json); name its folder: --resume DIR",
        ),
        (("here",), "--resume here: not a run's folder, it has no config.json"),
        (("runs/none",), "--resume runs/none: no such folder"),
    ],
)
def test_resume_without_a_run(asked, message):
    Path("here").mkdir()
    assert faults_of("--resume", *asked) == [message]


def test_resume_offers_the_nearest_run():
    saved("--name", "bccd")
    assert faults_of("--resume", "runs/bcd") == [
        "--resume runs/bcd: no such folder (did you mean 'runs/bccd'?)"
    ]


def test_val_flags():
    parser = argparse.ArgumentParser()
    add_val_arguments(parser)
    words = (
        "--weights a.pt --data d.yaml --imgsz 320 --batch-size 8 --split test --set iou=0.6 "
        "--local_rank 1"
    )
    args = parser.parse_args(words.split())
    assert (args.weights, args.data, args.imgsz, args.batch_size, args.split) == (
        "a.pt",
        "d.yaml",
        320,
        8,
        "test",
    )
    assert args.set == ["iou=0.6"]
    assert not hasattr(args, "epochs")


def test_the_folder_that_the_launcher_has_chosen_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = tmp_path / "runs" / "exp3"
    assert build("--data", "demo", "--run-dir", str(chosen)).run_dir == Path("runs", "exp3")
    chosen.mkdir(parents=True)
    kept = build("--data", "demo", "--run-dir", str(chosen), "--epochs", "7")
    (chosen / "config.json").write_text(kept.to_json())
    assert build("--resume", "--run-dir", str(chosen)).epochs == 7
    assert "run_dir" not in dict(kept.given)


@pytest.mark.parametrize("named", ["zero2_fp32", "zero2_fp32.json"])
def test_a_ready_configuration_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build("--data", "demo", "--deepspeed_config", named).deepspeed.zero_stage == 2
    (tmp_path / named).write_text('{"zero_optimization": {"stage": 3}}')
    assert build("--data", "demo", "--deepspeed_config", named).deepspeed.zero_stage == 3, (
        "a file of the user's wins"
    )


def test_a_folder_of_its_name_does_not_hide_a_ready_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zero2_fp32").mkdir()
    assert build("--data", "demo", "--deepspeed_config", "zero2_fp32").deepspeed.zero_stage == 2


@pytest.mark.parametrize(
    ("named", "offered"),
    [
        ("zero2_fb32", "'zero2_fp32'"),
        ("zero2_fb32.json", "'zero2_fp32'"),
        ("pipeline2", "'pipeline2_fp32'"),
        ("ds_configs/zero2_fp32.json", "'zero2_fp32'"),
    ],
)
def test_a_name_that_is_none_of_the_ready_configurations_offers_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, offered: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = faults_of("--data", "demo", "--deepspeed_config", named)
    start = (
        f"--deepspeed_config {named}: no such file (did you mean {offered}?); ds_configs/ has "
        "pipeline2_fp32, "
    )
    assert line.startswith(start)


@pytest.mark.parametrize("named", ["mine.json", "else/where.json"])
def test_a_file_that_is_missing_is_not_taken_for_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert faults_of("--data", "demo", "--deepspeed_config", named) == [
        f"--deepspeed_config {named}: no such file"
    ]


def test_data_yamls_that_ultralytics_ships_are_taken_by_name():
    for name in ("coco8.yaml", "coco8", "coco.yaml"):
        data = build("--data", name).data
        assert data.is_file() and data.parent.name == "datasets"
    Path("coco8.yaml").write_text("names: [a]\n")
    assert build("--data", "coco8.yaml").data == Path("coco8.yaml").absolute()
    assert faults_of("--data", "cocoo8.yaml") == ["--data cocoo8.yaml: no such file"]
    assert faults_of("--data", "x/coco.yaml") == ["--data x/coco.yaml: no such file"]


def test_a_run_on_a_shipped_yaml_is_gone_on_with_by_the_same_words():
    config = build("--data", "coco8.yaml")
    config.run_dir.mkdir(parents=True)
    (config.run_dir / CONFIG_FILE).write_text(config.to_json())
    assert build("--data", "coco8.yaml", "--resume", str(config.run_dir)).data == config.data


def test_a_run_goes_on_with_its_data_from_another_place() -> None:
    """Packed, for example. Other data are seen when they are read (`resume_check`)."""
    Path("packed.yaml").write_text("names: [a]\n")
    config = build("--data", "d.yaml")
    config.run_dir.mkdir(parents=True)
    (config.run_dir / CONFIG_FILE).write_text(config.to_json())
    resume = ("--resume", str(config.run_dir))
    found, before = build("--data", "packed.yaml", *resume), config.data
    assert found.data == Path("packed.yaml").absolute()
    assert f"--data: the run goes on with {found.data} in place of {before}" in found.notes
    assert build("--data", str(before), *resume).notes == build(*resume).notes
    (config.run_dir / CONFIG_FILE).write_text(found.to_json())
    again = build(*resume)
    assert again.data == found.data and not any(each.startswith("--data") for each in again.notes)
    (config.run_dir / CONFIG_FILE).write_text(config.to_json())
    assert faults_of("--data", "missing.yaml", *resume) == ["--data missing.yaml: no such file"]
    assert faults_of("--data", "demo", *resume)[0].startswith("--data is 'demo', but the run in")


def test_an_args_yaml_says_what_no_flag_says():
    Path("args.yaml").write_text(
        "task: detect\nmode: train\nmodel: yolov5n6.yaml\ndata: d.yaml\nepochs: 7\nbatch: 4\n"
        "imgsz: 128\ndevice: cpu\n"
        "name: train3\namp: true\nsave_dir: /x/train3\noptimizer: auto\nlr0: 0.01\n"
    )
    config = build("--hyp", "args.yaml")
    assert (config.data, config.model, config.weights) == (
        Path("d.yaml").absolute(),
        "yolov5n6.yaml",
        None,
    )
    assert (config.epochs, config.batch_size, config.imgsz, config.name) == (7, 4, 128, "exp")
    told = [note.split(", which has no effect")[0] for note in config.notes]
    assert told == [
        "args.yaml line 8: device is 'cpu'",
        "args.yaml line 9: name is 'train3'",
        "args.yaml line 10: amp is true",
        "args.yaml line 11: save_dir is '/x/train3'",
    ]
    other = build("--hyp", "args.yaml", "--data", "demo", "--model", "yolov5s", "--epochs", "2")
    assert other.is_demo and (other.model, other.epochs) == ("yolov5s", 2)


def test_a_pt_that_an_args_yaml_names_as_its_model_is_where_weights_come_from():
    Path("args.yaml").write_text("model: yolov5n6u.pt\ndata: demo\n")
    assert faults_of("--hyp", "args.yaml")[0].startswith("--weights yolov5n6u.pt: no such file")
    Path("yolov5n6u.pt").touch()
    config = build("--hyp", "args.yaml")
    assert (config.model, config.weights) == ("yolov5n6", Path("yolov5n6u.pt").absolute())
    assert build("--hyp", "args.yaml", "--model", "yolov5s").weights is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--epochs", "9" * 23),
            "--epochs is 99999999999999999999999: it must be a whole number of at least 1, and at",
        ),
        (
            ("--imgsz", "1000000000000"),
            "--imgsz is 1000000000000: it must be a whole number of at least 1, and at most",
        ),
        (
            ("--workers", "3000000000"),
            "--workers is 3000000000: it must be a whole number of at least 0, and at most",
        ),
        (
            ("--set", "nbs=1.0e+300"),
            "--set nbs is 1e+300: it must be a whole number of at least 1, and at most 2147483647",
        ),
    ],
)
def test_numbers_that_nothing_can_count_to_are_refused(words, message):
    (fault,) = faults_of("--data", "demo", *words)
    assert message in fault


def test_numbers_of_a_json_that_nothing_can_count_to_are_refused():
    file = write_json(
        {"train_batch_size": 1e300, "zero_optimization": {"stage": 3, "sub_group_size": 1e12}}
    )
    (fault,) = faults_of("--data", "demo", "--deepspeed_config", file)
    assert (
        '"train_batch_size" is 1e+300: it must be a whole number of at least 1, and at most '
        "2147483647" in fault
    )


def test_weights_that_are_not_read_are_said_and_have_to_be_there():
    words = ("--data", "demo", "--weights", "yolov5nu.pt", "--set", "pretrained=false")
    (fault,) = faults_of(*words)
    assert fault.startswith("--weights yolov5nu.pt: no such file")
    Path("yolov5nu.pt").touch()
    assert build(*words).notes == ("--weights yolov5nu.pt is ignored: pretrained is false",)
    assert build(*words[:4]).notes == ()


def test_values_that_count_for_nothing_are_among_the_notes_that_the_start_shows():
    (note,) = build("--data", "demo", "--set", "lr0=0.02").notes
    assert note.startswith("--set lr0 is 0.02, which has no effect: optimizer=auto chooses")
    assert build("--data", "demo", "--set", "lr0=0.02", "--optimizer", "SGD").notes == ()
    file = write_json({"optimizer": {"type": "SGD", "params": {"lr": "auto"}}})
    assert build("--data", "demo", "--set", "lr0=0.02", "--deepspeed_config", file).notes == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--imgsz 32 --batch-size 2", "1 image per rank x (32 / 32)^2 cells = 1 value per channel"),
        ("--imgsz 64 --batch-size 2 --model yolov5n6", "1 image per rank x (64 / 64)^2 cells"),
        (
            "--imgsz 64 --batch-size 2 --multi-scale",
            "--imgsz 64 with multi_scale 0.5, down to 32: 1 image per rank",
        ),
        ("--model yolov5k", "--model yolov5k: unknown model"),
        ("--model none.yaml", "--model none.yaml: no such file"),
    ],
)
def test_what_the_ranks_would_refuse_of_a_model_is_refused_before(words, message):
    faults = faults_of("--data", "demo", *words.split())
    assert len(faults) == 1 and message in faults[0]


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ("--imgsz 32 --batch-size 2", (1, 1, 1, 1)),
        ("--imgsz 32 --batch-size 4", (2, 1, 1, 1)),
        ("--imgsz 32 --batch-size 2 --sync-bn", (2, 1, 1, 1)),  # of both ranks
        ("--imgsz 64 --batch-size 2", (1, 1, 2, 2)),
        ("--imgsz 64 --batch-size 2 --model yolov5n6", (1, 1, 1, 1)),
    ],
)
def test_batches_of_which_batchnorm_has_no_variance_are_refused_and_no_others(words, shape):
    """torch says which: it refuses the values of one channel that the deepest layer sees."""
    try:
        torch.nn.BatchNorm2d(1)(torch.rand(shape))
        refused = []
    except ValueError:
        refused = ["which has no variance for BatchNorm"]
    try:
        config, found = build("--data", "demo", *words.split()), []
    except UserError as error:
        config, found = None, str(error).splitlines()
    assert len(found) == len(refused) and all(
        part in line for part, line in zip(refused, found, strict=True)
    )
    if config is not None:
        shared = config.deepspeed.dp_size if config.hyper.sync_bn else 1
        assert (config.deepspeed.micro_batch * shared, config.imgsz // 32) == shape[::2]


def test_a_users_yaml_is_not_taken_for_a_p6_model_by_its_name():
    for name in ("crop6.yaml", "yolov5n6.yaml"):
        Path(name).write_text("backbone: []\n")
        assert build("--data", "demo", "--imgsz", "96", "--model", name).imgsz == 96


def test_a_hyp_file_does_not_make_another_run_of_the_one_that_is_gone_on_with():
    saved("--epochs", "3", "--model", "yolov5n")
    Path("args.yaml").write_text("data: other.yaml\nmodel: yolov5s\nname: train3\n")
    faults = faults_of("--resume", "runs/exp", "--hyp", "args.yaml")
    assert len(faults) == 2 and "--data is " in faults[0] and "--model is 'yolov5s'" in faults[1]
    Path("args.yaml").write_text("data: d.yaml\nmodel: yolov5n\nname: train3\n")
    resumed = build("--resume", "runs/exp", "--hyp", "args.yaml")
    assert resumed.notes == ("args.yaml line 3: name is 'train3', which has no effect: use --name",)
    assert dict(resumed.given) == {"resume": "runs/exp", "hyp": "args.yaml"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("epochs", value) for value in (None, "x", 3.5, 0, True)),
        *(("workers", value) for value in ("x", -1)),
        ("imgsz", float("inf")),
        ("batch_size", 0),
        ("ranks", 0),
        ("device", "tpu"),
        *(
            (key, 5)
            for key in ("data", "model", "weights", "name", "project", "deepspeed_path", "exist_ok")
        ),
    ],
)
def test_a_config_json_that_was_edited_wrongly_is_refused_by_key(key, value):
    run = saved()
    content = json.loads((run.run_dir / CONFIG_FILE).read_text())
    (run.run_dir / CONFIG_FILE).write_text(json.dumps({**content, key: value}))
    first, line = faults_of("--resume", str(run.run_dir))
    assert first == f"{run.run_dir / CONFIG_FILE} cannot be used any more:"
    assert line.startswith(f"{key} is ")


@pytest.mark.parametrize("value", [0, None, "x", -1, 1.5])
def test_a_micro_batch_of_nothing_in_config_json_divides_by_nothing(value):
    content = json.loads(build("--data", "demo").to_json())
    content["deepspeed"]["train_micro_batch_size_per_gpu"] = value
    with pytest.raises(
        UserError, match=r"cannot be used any more:\ndeepspeed\.train_micro_batch_size_per_gpu is "
    ):
        RunConfig.from_json(json.dumps(content), Path("x"))


def test_a_config_json_that_is_no_text_is_one_line_and_no_traceback():
    run = saved()
    (run.run_dir / CONFIG_FILE).write_bytes(b'{"run": "\xff"}')
    (line,) = faults_of("--resume", str(run.run_dir))
    assert line.startswith(
        f"{run.run_dir / CONFIG_FILE}: not a run's configuration: UnicodeDecodeError"
    )


@pytest.mark.parametrize("flag", ["--name", "--project"])
def test_a_folder_whose_name_no_table_can_write_is_refused_before_a_start(flag):
    (line,) = faults_of("--data", "demo", flag, os.fsdecode(b"r\xff"))
    assert line == f"{flag} 'r\\udcff': not valid UTF-8; use another name"


@pytest.mark.parametrize("words", [("--resume", ""), ("--resume=",)])
def test_an_empty_resume_is_refused_and_no_run_is_begun_in_its_place(words):
    (line,) = faults_of("--data", "demo", *words)
    assert line.startswith("--resume is empty: name the run's folder")


def test_an_empty_project_does_not_put_runs_where_one_stands():
    assert faults_of("--data", "demo", "--project", "") == [
        "--project is empty: name a folder, or omit the flag to use runs/"
    ]


def with_checkpoint(run: RunConfig) -> RunConfig:
    (run.run_dir / "checkpoints" / "step00000004").mkdir(parents=True)
    return run


def test_a_start_that_came_to_nothing_does_not_hide_the_run_that_is_meant():
    real = with_checkpoint(saved())
    for seconds in (10, 20):
        nothing = saved()
        os.utime(nothing.run_dir / CONFIG_FILE, (2e9 + seconds,) * 2)
    resumed = build("--resume")
    assert resumed.run_dir == real.run_dir
    (note,) = (note for note in resumed.notes if note.startswith("--resume"))
    assert note.endswith("skipped newer runs without a checkpoint: runs/exp3, runs/exp2")
    assert not [note for note in build("--resume", "runs/exp").notes if note.startswith("--resume")]


def test_flags_of_a_folder_that_a_resumed_run_does_not_take_are_not_passed_over_in_silence():
    run = with_checkpoint(saved())
    (line,) = faults_of("--resume", "runs/exp", "--project", "other")
    assert line.startswith("--project is 'other', but the run in runs/exp has 'runs'; omit it")
    assert build("--resume", "runs/exp", "--project", "runs").run_dir == run.run_dir
    assert any(
        note.startswith("--exist-ok is ignored") for note in build("--resume", "--exist-ok").notes
    )


def test_a_name_that_begins_several_ready_configurations_offers_those():
    (line,) = faults_of("--data", "demo", "--deepspeed_config", "zero1")
    assert "no such file (did you mean 'zero1_bf16' or 'zero1_fp" in line
