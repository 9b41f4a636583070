"""From flags to a configuration: where each value comes from, and what is wrong with names of files
and folders.

Whole runs, and going on with them: test_config_run.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from yolods.config.build import build_run_config, default_workers, read_folder
from yolods.config.flags import add_train_arguments
from yolods.config.run import RunConfig
from yolods.errors import Faults, UserError


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def build(*words: str, **context: object) -> RunConfig:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    return build_run_config(
        parser.parse_args(words), **{"world_size": 2, "device": "cpu", **context}
    )


def faults_of(*words: str, **context: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(*words, **context)
    return str(caught.value).splitlines()


def folder_faults(**given: object) -> list[str]:
    faults = Faults()
    read_folder(
        argparse.Namespace(**{"name": None, "project": None, "exist_ok": None, **given}), faults
    )
    return list(faults)


@pytest.mark.parametrize(
    ("name", "fine"), [("exp2", True), ("a/b", False), ("..", False), ("", False), ("é", True)]
)
def test_a_run_is_named_by_one_folder(name, fine):
    assert folder_faults(name=name) == (
        []
        if fine
        else [f"--name {name!r}: it must be a single folder name; use --project for the path"]
    )


def test_a_project_is_a_folder_with_a_name_that_can_be_written():
    Path("taken").touch()
    assert folder_faults(project="taken") == ["--project taken: this is a file; name a folder"]
    assert folder_faults(project="") == [
        "--project is empty: name a folder, or omit the flag to use runs/"
    ]
    assert folder_faults(project="new/one") == []
    (line,) = folder_faults(name="\udce9")
    assert line.startswith("--name '\\udce9': not valid UTF-8; use another name")


def test_weights_that_would_be_put_aside_with_their_folder_are_refused():
    weights = Path("runs/exp/weights/best.pt")
    weights.parent.mkdir(parents=True)
    weights.touch()
    words = ("--data", "demo", "--model", "yolov5n", "--weights", str(weights))
    (line,) = faults_of(*words, "--exist-ok")
    assert line.startswith(
        f"--weights {weights.absolute()}: --exist-ok moves the contents of runs/exp; copy the file"
    )
    assert build(*words).weights == weights.absolute()


@pytest.mark.parametrize(("flag", "name"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_the_accelerator_that_the_environment_names_has_to_be_the_one_that_computes(flag, name):
    (line,) = faults_of("--data", "demo", device=flag, environ={"DS_ACCELERATOR": name})
    assert line == (
        f"DS_ACCELERATOR is {name}, but this process computes on {flag}; unset it, or set it "
        f"to {flag}"
    )
    assert build("--data", "demo", environ={"DS_ACCELERATOR": "npu"}).device == "cpu", (
        "no name that is known here"
    )


def test_a_flag_wins_over_the_hyp_file_and_a_fault_names_who_gave_the_number():
    Path("h.yaml").write_text("epochs: 0\nimgsz: 96\n")
    assert build("--data", "demo", "--hyp", "h.yaml", "--epochs", "3").epochs == 3
    (line,) = faults_of("--data", "demo", "--hyp", "h.yaml")
    assert line.startswith("--hyp h.yaml: epochs is 0: it must be a whole number of at least 1")


def test_files_are_checked_beside_the_flags_and_all_is_said_at_once():
    seen = []

    def check(config: RunConfig, faults: Faults) -> None:
        seen.append(config.epochs)
        faults.add("d.yaml: has no images")

    lines = faults_of("--data", "demo", "--epochs", "0", "--imgsz", "50", check_files=check)
    assert seen == [RunConfig.epochs], "in the place of what is wrong stands the default"
    assert [line.split()[0] for line in lines] == ["--epochs", "--imgsz", "d.yaml:"]


def test_loader_processes_would_take_cores_from_training_on_a_cpu():
    assert (default_workers("cuda"), default_workers("cpu")) == (8, 0)
    assert build("--data", "demo", "--workers", "3").workers == 3
