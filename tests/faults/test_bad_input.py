"""Mistakes that one process can see are shown before any other is started: a line each, exit status
2, no traceback."""

import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny import make_dataset
from yolods import __version__, cli
from yolods.launch import supervisor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def preflight(tmp_path, monkeypatch, capfd) -> Callable[..., list[str]]:
    """Runs `yolods launch WORDS` in a folder with a data set, and returns its lines; starting
    anything is a failure."""

    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.chdir(tmp_path)
    for name in ("CUDA_VISIBLE_DEVICES", "HOSTFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(cli.os, "execvpe", refuse)
    monkeypatch.setattr(supervisor.subprocess, "Popen", refuse)
    make_dataset(tmp_path / "data", train=3, val=2)

    def run(*words: str, code: int = 2) -> list[str]:
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        assert cli.main(["launch", *words]) == code
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before
        out, err = capfd.readouterr()
        assert out == ""
        return [line for line in err.splitlines() if not line.startswith(LOOKING)]

    return run


GOOD = ("train", "--data", "data/tiny.yaml", "--imgsz", "64")
LOOKING = f"yolods: version {__version__}: checking "
"""What is said before torch is imported for a check."""


def test_what_is_sound_goes_on_to_the_launcher(preflight):
    """Else every test below could pass for a reason of its own."""
    with pytest.raises(AssertionError, match="a process was started"):
        preflight(*GOOD)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--data", "nowhere.yaml"], "--data nowhere.yaml: no such file"),
        (["train", "--data", "data"], "--data data: this is a folder; name the yaml in it"),
        (["train"], "--data is required: a data yaml, or --data demo for the embedded data set"),
        (
            ["trian", "--data", "x.yaml"],
            "unknown command 'trian' (did you mean 'train'?); the commands are train, val, ",
        ),
        (
            [*GOOD, "--epoch", "3"],
            "unknown flag --epoch (did you mean '--epochs'?); yolods train --help lists them",
        ),
        (
            [*GOOD, "--weigths", "a.pt"],
            "unknown flag --weigths (did you mean '--weights'?); yolods train --help",
        ),
        ([*GOOD, "--epochs", "many"], "--epochs is 'many': it must be a whole number"),
        ([*GOOD, "--lr0", "0.1"], "--lr0: a hyper-parameter; write --set lr0=VALUE"),
        (
            [*GOOD, "--deepspeed"],
            "--deepspeed: not needed: every run uses DeepSpeed; ",
        ),
        (
            [*GOOD, "--hostfil", "h"],
            "--hostfil: unknown (did you mean the launcher flag '--hostfile'?)",
        ),
        ([*GOOD, "epochs=3"], "epochs=3: write flags with dashes: --epochs 3"),
        ([*GOOD, "mosaic=0.5"], "mosaic=0.5: a hyper-parameter; write --set mosaic=VALUE"),
        (
            ["predict"],
            "yolods has no 'predict'; use ultralytics on best.pt: YOLO('best.pt').predict(...)",
        ),
        ([*GOOD, "--epochs", "0"], "--epochs is 0: it must be a whole number of at least 1"),
        (
            [*GOOD, "--batch-size", "7"],
            "--batch-size 7 cannot be divided evenly among 2 ranks: 7 / 2 = 3.50; use 6 or 8",
        ),
        ([*GOOD, "--imgsz", "100"], "--imgsz 100: yolov5s needs a multiple of 32; use 96 or 128"),
        (
            [*GOOD, "--model", "yolov5k"],
            "--model yolov5k: unknown model (did you mean 'yolov5x'?); use yolov5n, s, ",
        ),
        (
            [*GOOD, "--weights", "yolov5n.pt"],
            "--weights yolov5n.pt: no such file (weights are never downloaded; fetch ",
        ),
        ([*GOOD, "--resume", "runs/exp"], "--resume runs/exp: no such folder"),
        ([*GOOD, "--resume", "data"], "--resume data: not a run's folder, it has no config.json"),
        (
            [*GOOD, "--resume"],
            "--resume: no run in runs (a run contains config.json); name its folder: --resume DIR",
        ),
        (
            [*GOOD, "--project", "data/tiny.yaml"],
            "--project data/tiny.yaml: this is a file; name a folder",
        ),
        ([*GOOD, "--hyp", "none.yaml"], "--hyp none.yaml: "),
        (
            [*GOOD, "--set", "lr=0.1"],
            "--set lr is not a hyper-parameter (did you mean 'lrf'?); docs/configuration.md lists ",
        ),
        (
            [*GOOD, "--device", "0"],
            "--device is not supported: choose devices with the launcher's ",
        ),
        ([*GOOD, "--hostfile", "hosts"], "--hostfile hosts: no such file"),
        ([*GOOD, "--num_gpus", "two"], "--num_gpus is 'two': it must be a whole number"),
        (["val", "--weights", "a.pt", "--data", "data/tiny.yaml"], "--weights a.pt: no such file"),
        (
            ["val", "--data", "data/tiny.yaml"],
            "--weights is missing: name the .pt to evaluate, for example runs/",
        ),
    ],
)
def test_flags(preflight, words, line):
    (shown,) = preflight(*words)
    assert shown.startswith(f"error: {line}")


def test_faults_of_flags_and_of_what_they_say_are_shown_together(preflight):
    words = (
        "train",
        "--data",
        "nowhere.yaml",
        "--epoch",
        "3",
        "--conf-thres",
        "0.1",
        "--imgsz",
        "big",
    )
    lines = preflight(*words, "--device", "0", "--batch-size", "7")
    assert [line.split(":")[1].split()[0] for line in lines] == [
        *("--imgsz", "--device", "unknown", "--conf-thres", "--batch-size", "--data"),
    ]


@pytest.mark.parametrize(
    "flag", ["--exist_ok", "--exist-ok", "--cos_lr", "--save_period=1", "--close_mosaic=2"]
)
def test_a_flag_may_be_written_with_either_kind_of_dash(preflight, flag):
    with pytest.raises(AssertionError, match="a process was started"):
        preflight(*GOOD, flag)


@pytest.mark.parametrize("words", [["train", "--hostfile", "h"], ["train", "--max-restarts", "2"]])
def test_a_flag_of_the_launcher_says_whose_it_is(capsys, words):
    assert cli.main([*words, "--data", "demo"]) == 2
    assert (
        f"{words[1]}: a flag of the launcher; use it with `yolods launch`"
        in capsys.readouterr().err
    )


def faulty_yaml(text: str) -> Path:
    path = Path("data/faulty.yaml")
    path.write_text(text)
    return path.absolute()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "val: images/val\nnames: [a, b]\n",
            ["train: missing; name the folder of its images, as in `train: images/train`"],
        ),
        (
            "train: images/train\nnames: [a, b]\n",
            ["val: missing; name the folder of its images, as in `val: images/val`"],
        ),
        (
            "train: images/train\nval: images/val\n",
            ["names: missing; list the class names, as in `names: [cat, dog]`"],
        ),
        (
            "train: no\nval: images/val\nnames: [a]\n",
            ["train: must be a path or a list of paths, not False"],
        ),
        (
            "train: gone\nval: images/val\nnames: [a]\n",
            ["train: {data}/gone does not exist ('gone' below {data})"],
        ),
        (
            "train: labels/train\nval: images/val\nnames: [a]\n",
            [
                "train: no images in {data}/labels/train, and no videos; known types: avif bmp dng "
                "heic heif jp2 jpeg jpg mpo png tif "
            ],
        ),
        (
            "train: gone\nval: images/val\nnames: [a]\nnc: 3\n",
            [
                "names and nc disagree: 1 names, nc: 3; remove nc, or correct one of them",
                "train: {data}/gone does not exist ('gone' below {data})",
            ],
        ),
        ("[1, 2]\n", ["not a data yaml: expected keys train, val and names, found list"]),
    ],
)
def test_data_yamls(preflight, text, lines):
    path = faulty_yaml(text)
    shown = preflight("train", "--data", "data/faulty.yaml", "--imgsz", "64")
    expected = [f"error: {path}: {line.format(data=path.parent)}" for line in lines]
    assert len(shown) == len(expected)
    assert all(one.startswith(other) for one, other in zip(shown, expected, strict=True))


def test_a_data_yaml_that_is_no_yaml(preflight):
    path = faulty_yaml("train: images/train\n  val: : [\n")
    (shown,) = preflight("train", "--data", "data/faulty.yaml")
    assert shown.startswith(f"error: {path}:2: not valid yaml: ")


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (
            '{"bf16": {"enabled": true}',
            (),
            "--deepspeed_config ds.json: line 1 column 27: expecting ",
        ),
        (
            '{"train_batch_size": 64,}',
            (),
            "--deepspeed_config ds.json: line 1 column 25: expecting ",
        ),
        (
            '{"zero_optimisation": {"stage": 1}}',
            (),
            'ds.json: unknown key "zero_optimisation" (did you mean ',
        ),
        (
            '{"zero_optimization": {"stage": 7}}',
            (),
            'ds.json: "zero_optimization".stage is 7: it must be a whole ',
        ),
        (
            '{"fp16": {"enabled": true}, "zero_optimization": {"stage": 1}}',
            (),
            'ds.json: "fp16": the CPU backend has ',
        ),
        (
            '{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, '
            '"gradient_accumulation_steps": 4}',
            (),
            "ds.json: train_batch_size 64 != train_micro_batch_size_per_gpu 4 x "
            'gradient_accumulation_steps 4 x 2 ranks = 32; set one of them to "auto"',
        ),
        (
            '{"train_micro_batch_size_per_gpu": 4}',
            ("--batch-size", "16"),
            "ds.json: train_micro_batch_size_per_gpu 4 x 2 ranks = 8, but --batch-size is 16; use "
            '--batch-size 8, omit it, or set train_micro_batch_size_per_gpu to "auto"',
        ),
        (
            '{"optimizer": {"type": "Adam", "params": {"lr": 0.1}}}',
            ("--set", "lr0=0.2"),
            'ds.json: "optimizer" sets lr0 to 0.1, but --set lr0 is 0.2; remove one of them, or '
            'write "auto" in ',
        ),
    ],
)
def test_deepspeed_json(preflight, text, words, line):
    Path("ds.json").write_text(text)
    (shown,) = preflight(*GOOD, "--deepspeed_config", "ds.json", *words)
    assert shown.startswith(f"error: {line}")


def test_an_evaluation_does_not_write_over_a_training_run(preflight):
    Path("runs/exp").mkdir(parents=True)
    Path("runs/exp/config.json").write_text("{}")
    Path("a.pt").touch()
    words = ("val", "--weights", "a.pt", "--data", "data/tiny.yaml", "--name", "exp", "--exist-ok")
    shown, weights = preflight(*words)
    assert shown.startswith(
        "error: --exist-ok: runs/exp is the folder of a training run and would be overwritten"
    )
    assert weights.startswith("error: --weights a.pt: ")


def test_an_original_yolov5_checkpoint(preflight):
    pickled = b"\x80\x02}X\x05\x00\x00\x00modelcmodels.yolo\nDetectionModel\n)\x81s."
    with zipfile.ZipFile("yolov5n.pt", "w") as archive:
        archive.writestr("yolov5n/data.pkl", pickled)
    (shown,) = preflight(*GOOD, "--weights", "yolov5n.pt")
    assert shown == (
        f"error: --weights {Path('yolov5n.pt').absolute()}: an original anchor-based yolov5 "
        "checkpoint. YOLOv5 here is ultralytics' anchor-free YOLOv5u: its head differs and these "
        "weights do not fit. Use a YOLOv5u file (for example yolov5nu.pt), or train from scratch "
        "without --weights"
    )


@pytest.mark.parametrize("content", [b"not a checkpoint", pickle.dumps({"model": None}), b""])
def test_weights_that_are_no_checkpoint(preflight, content):
    Path("notes.pt").write_bytes(content)
    (shown,) = preflight(*GOOD, "--model", "yolov5n", "--weights", "notes.pt")
    assert shown == (
        f"error: --weights {Path('notes.pt').absolute()}: not a loadable ultralytics checkpoint: "
        "it is damaged, cut short or another kind of file"
    )


@pytest.mark.parametrize(
    "content", [torch.nn.Linear(2, 2), [1], {"a.weight": torch.zeros(1)}, {"model": None}, None]
)
def test_weights_that_hold_no_detector_start_no_process(preflight, content):
    """`val` has always read the whole file before a start."""
    if content is None:
        zipfile.ZipFile("notes.pt", "w").close()
    else:
        torch.save(content, "notes.pt")
    (shown,) = preflight(*GOOD, "--model", "yolov5n", "--weights", "notes.pt")
    assert shown.startswith(f"error: --weights {Path('notes.pt').absolute()}: ")
    assert (
        "not a loadable ultralytics checkpoint" in shown
        or "not an ultralytics detection model" in shown
    )


@pytest.mark.parametrize(
    ("cuts", "lines"),
    [
        ("[99]", ["error: pipeline: cut 99 names nothing; layers are 1 to 24"]),
        ('["x"]', ["error: pipeline: cut 'x' names nothing; layers are 1 to 24"]),
        ("[9, 5]", ["error: pipeline: cuts must ascend, but 5 does not come after 9: [9, 5]"]),
    ],
)
def test_cuts_of_a_pipeline_that_its_ranks_would_refuse_start_no_process(preflight, cuts, lines):
    ranks = cuts.count(",") + 2
    Path("ds.json").write_text(f'{{"pipeline": {{"stages": {ranks}, "partition": {cuts}}}}}')
    Path("hosts").write_text(f"localhost slots={ranks}\n")
    words = ("--hostfile", "hosts", *GOOD, "--deepspeed_config", "ds.json", "--batch-size", "6")
    assert preflight(*words) == lines


def test_classes_that_the_demo_has_not_start_no_process(preflight):
    (shown,) = preflight("train", "--data", "demo", "--set", "classes=99")
    assert shown == "error: classes: 99 is no class of demo, which names 3 (ids 0 to 2)"


def test_all_faults_are_shown_at_once(preflight):
    Path("ds.json").write_text('{"train_batch_size": 0, "bf17": {}}')
    shown = preflight(
        *(
            "train",
            "--data",
            "gone.yaml",
            "--imgsz",
            "70",
            "--weights",
            "gone.pt",
            "--epochs",
            "-1",
            "--model",
            "yolov5n",
        ),
        *("--deepspeed_config", "ds.json", "--set", "mosaic=2", "--set", "momentun=0.9"),
    )
    starts = [
        "--set mosaic",
        "--set momentun",
        "--epochs is -1",
        'ds.json: "train_batch_size" is 0',
        'ds.json: unknown key "bf17"',
        "--data gone.yaml",
        "--weights gone.pt",
        "--imgsz 70",
    ]
    found = {
        start: [line for line in shown if line.startswith(f"error: {start}")] for start in starts
    }
    assert all(len(lines) == 1 for lines in found.values()), found
    assert len(shown) == len(starts)


def test_faults_of_data_model_and_weights_stand_beside_those_of_flags(preflight):
    Path("bad.yaml").write_text("train: nowhere\nval: nowhere\nnames: 5\n")
    Path("own.yaml").write_text("backbone: [[-1, 1, Conv]]\nhead: [[[9], 1, Detect, [nc]]]\n")
    Path("none.pt").write_text("no weights")
    shown = preflight(
        "train",
        "--data",
        "bad.yaml",
        "--epochs",
        "0",
        "--model",
        "own.yaml",
        "--weights",
        "none.pt",
    )
    for part in (
        "--epochs is 0",
        "/bad.yaml: names",
        "/own.yaml: layer 0",
        "/own.yaml: layer 1",
        "/none.pt: ",
    ):
        assert [line for line in shown if part in line], (part, shown)
    (frozen, epochs) = sorted(
        preflight(*GOOD, "--epochs", "0", "--freeze", "typo"), key=lambda line: "--epochs" in line
    )
    assert "'typo' names no layer" in frozen and "--epochs is 0" in epochs


def test_faults_of_data_and_weights_stand_beside_those_of_vals_flags(preflight):
    Path("bad.yaml").write_text("val: nowhere\nnames: 5\n")
    Path("none.pt").write_text("no weights")
    shown = preflight(
        "val", "--data", "bad.yaml", "--weights", "none.pt", "--imgsz", "70", "--set", "iou=2"
    )
    for part in ("--imgsz 70", "--set iou", "bad.yaml: names", "--weights none.pt"):
        assert [line for line in shown if part in line], (part, shown)


@pytest.mark.parametrize(
    ("block", "ranks", "part"),
    [
        ({"stages": 2, "memory_gib": 0.01}, 2, "pipeline: the smallest peak with 2 stages is "),
        ({"stages": 64}, 64, "pipeline: 64 stages, but there are 56 nodes to divide among them"),
        (
            {"stages": 32, "partition": "uniform"},
            32,
            "divides whole layers, but 32 stages > 25 layers",
        ),
        (
            {"stages": 3, "partition": [11, 13]},
            3,
            "stage 1 (11..12) has nothing to train: it has no weights",
        ),
    ],
    ids=["memory", "nodes", "layers", "a stage without weights"],
)
def test_stages_that_cannot_be_made_start_no_process(preflight, block, ranks, part):
    Path("ds.json").write_text(json.dumps({"pipeline": block}))
    words = (
        "--batch-size",
        "4",
        "--model",
        "yolov5n",
        "--num_gpus",
        str(ranks),
        "--deepspeed_config",
        "ds.json",
    )
    shown = preflight(*GOOD, *words)
    assert part in shown[-1] and all(line.startswith("error: pipeline: ") for line in shown)


def test_a_start_that_looks_at_the_model_first_says_so_at_once(preflight, capfd):
    with pytest.raises(AssertionError, match="a process was started"):
        preflight(*GOOD, "--freeze", "2")
    first, second = capfd.readouterr().err.splitlines()[:2]
    assert first == f"{LOOKING}the model before the start" and "starting training on" in second


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["launch", "train", "--data", "nowhere.yaml"], "error: --data nowhere.yaml: no such file"),
        (["train", "--data", "nowhere.yaml"], "error: --data nowhere.yaml: no such file"),
        (
            ["export", "nowhere", "--to", "a.pt"],
            "error: nowhere: no such folder; name a run's folder, its checkpoints/, ",
        ),
        (
            ["flags"],
            "error: unknown command 'flags'; the commands are train, val, export, demo, launch",
        ),
    ],
)
def test_as_typed_in_a_shell(run_process, tmp_path, words, line):
    done = run_process(
        [sys.executable, "-m", "yolods", *words], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_a_cache_that_cannot_be_made(run_process, tmp_path):
    (tmp_path / "file").touch()
    variables = {
        "YOLODS_CACHE": str(tmp_path / "file" / "cache"),
        "YOLO_CONFIG_DIR": str(tmp_path / "file" / "cache"),
    }
    done = run_process([sys.executable, "-m", "yolods", "version"], cwd=ROOT, env=variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: cannot create {tmp_path / 'file' / 'cache'}: Not a directory; set YOLODS_CACHE to "
        "a writable folder\n"
    )


@pytest.mark.parametrize(
    "start", [("--num_gpus", "x"), ("--hostfile", "nope"), ("--num_gpus", "99999999999")]
)
def test_mistakes_in_the_launchers_flags_stand_beside_those_of_the_word(preflight, start):
    lines = preflight("train", "--data", "nowhere.yaml", "--epoch", "3", *start)
    told = ["unknown", "--data"]
    assert [line.split()[1] for line in lines] == [start[0], *told], lines
    lines = preflight("val", "--weights", "nowhere.pt", *start)
    assert [line.split()[1] for line in lines] == [start[0], "--weights"], lines


def test_what_depends_on_the_number_of_ranks_is_not_told_where_that_is_not_known(preflight):
    words = ("--batch-size", "7", "--deepspeed_config", "pipeline2_fp32", "--hostfile", "nope")
    assert preflight(*GOOD, *words) == ["error: --hostfile nope: no such file"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "best.pt"], "--model: the model is in the .pt; write --weights PT"),
        (["model=best.pt"], "model=best.pt: the model is in the .pt; write --weights PT"),
        (["batch=4"], "batch=4: write flags with dashes: --batch 4"),
        (["--epochs", "3"], "--epochs: a flag of train, not of val"),
        (["--resume"], "--resume: a flag of train, not of val"),
        (["--hyp", "x.yaml"], "--hyp: a flag of train, not of val"),
        (["--seed", "1"], "--seed: a flag of train, not of val"),
        (["--lr0", "1"], "--lr0: a flag of train, not of val"),
        (["--single-cls"], "--single-cls: a hyper-parameter; write --set single_cls=VALUE"),
        (["--conf", "0.1"], "--conf: a hyper-parameter; write --set conf=VALUE"),
        (["--half"], "--half: not supported: an evaluation runs in fp32"),
        (["--device", "0"], "--device is not supported: choose devices with the launcher's"),
        (["--hostfil", "h"], "--hostfil: unknown (did you mean the launcher flag '--hostfile'?)"),
    ],
)
def test_val_advises_nothing_that_it_would_refuse(preflight, words, line):
    shown, weights = sorted(
        preflight("val", "--weights", "a.pt", *words), key=lambda each: "--weights a.pt" in each
    )
    assert shown.startswith(f"error: {line}") and weights == "error: --weights a.pt: no such file"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--workers", "-1"], "--workers is -1: it must be a whole number of at least 0"),
        (["--batch-size", "0"], "--batch-size is 0: it must be a whole number of at least 1"),
        (["--imgsz", "0"], "--imgsz is 0: it must be a whole number of at least 1"),
        (["--imgsz", "70"], "--imgsz 70: must be a multiple of 32"),
        (
            ["--imgsz", "1000000000000"],
            "--imgsz is 1000000000000: it must be a whole number of at least 1, and at most 65536",
        ),
        (["--name", "a/b"], "--name 'a/b': it must be a single folder name"),
        (["--name", ".."], "--name '..': it must be a single folder name"),
        (
            ["--project", "data/tiny.yaml"],
            "--project data/tiny.yaml: this is a file; name a folder",
        ),
        (["--deepspeed_config", "nope.json"], "--deepspeed_config nope.json: no such file"),
    ],
)
def test_val_refuses_what_train_refuses(preflight, words, line):
    shown, weights = sorted(
        preflight("val", "--weights", "a.pt", *words), key=lambda each: "--weights a.pt" in each
    )
    assert shown.startswith(f"error: {line}") and weights == "error: --weights a.pt: no such file"
