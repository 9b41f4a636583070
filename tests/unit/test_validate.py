"""What `val` is asked to do: whose classes, on which data, and what it leaves. Without ranks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.tiny import make_dataset
from yolods import cli
from yolods.checkpoint.pt_file import write_pt
from yolods.config import add_val_arguments
from yolods.errors import UserError
from yolods.evaluation.validate import METRICS_FILE, _numbers, _write_metrics, check_val_arguments
from yolods.model.architecture.build import architecture, build, parse_name


@pytest.fixture(autouse=True)
def in_a_folder_with_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data", train=2, val=1)


def weights_of(*names: str, data: str | None = None) -> str:
    """A .pt of a small model that knows these classes, and remembers the data that it was trained
    with."""
    torch.manual_seed(0)
    net = build(architecture(parse_name("yolov5[0.1,0.1]"), len(names), 3), names)
    args = {"imgsz": 64} | ({} if data is None else {"data": data})
    write_pt(Path("w.pt"), net, net.state_dict().items(), {"train_args": args})
    return "w.pt"


def request(*words: str):
    parser = argparse.ArgumentParser()
    add_val_arguments(parser)
    return check_val_arguments(parser.parse_args(words))


def refused(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        request(*words)
    return str(caught.value).splitlines()


TINY = ("--data", "data/tiny.yaml")


def test_weights_of_the_same_classes_are_judged_without_a_word():
    asked = request("--weights", weights_of("colour0", "colour1"), *TINY)
    assert (asked.weights, asked.data, asked.split, asked.notes) == (
        Path("w.pt"),
        Path("data/tiny.yaml"),
        "val",
        (),
    )


def test_another_number_of_classes_is_refused_with_both_lists():
    (line,) = refused("--weights", weights_of("colour0", "colour1", "more"), *TINY)
    assert "w.pt has 3 classes (0 colour0, 1 colour1, 2 more), but " in line
    assert "names 2 classes (0 colour0, 1 colour1)" in line


def test_the_same_names_under_other_ids_are_refused_with_both_lists():
    (line,) = refused("--weights", weights_of("colour1", "colour0"), *TINY)
    assert (
        "has 2 classes (0 colour1, 1 colour0), but " in line
        and "the same names have other ids" in line
    )


def test_other_names_are_told_with_both_lists():
    (note,) = request("--weights", weights_of("cat", "dog"), *TINY).notes
    assert (
        "has 2 classes (0 cat, 1 dog), but " in note
        and "names 2 classes (0 colour0, 1 colour1)" in note
    )


def test_without_data_the_yaml_that_the_weights_remember_is_taken():
    yaml = str(Path("data/tiny.yaml").absolute())
    assert request("--weights", weights_of("colour0", "colour1", data=yaml)).data == Path(yaml)
    assert request("--weights", weights_of("cone", "ball", "sign", data="demo")).data == Path(
        "demo"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "--data is missing, and w.pt does not name its training data; add --data"),
        (
            "/gone/x.yaml",
            "--data is missing, and /gone/x.yaml, the training data of w.pt, is not here; add "
            "--data",
        ),
    ],
)
def test_without_data_that_is_there_it_is_asked_for(data, words):
    assert refused("--weights", weights_of("a", data=data)) == [words]


def test_a_split_that_is_not_there_is_said_with_the_other_faults_before_a_process_starts(
    capsys, monkeypatch
):
    def start(*_):
        raise AssertionError("a launcher was started")

    monkeypatch.setattr("os.execvpe", start)
    weights = weights_of("colour0", "colour1")
    assert (
        cli.main(["launch", "val", "--weights", weights, "--data", "demo", "--split", "test"]) == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: --split test: the demo data has no test images; use train or val"
    assert len(lines) == 2 and "has 2 classes" in lines[1] and "demo names 3 classes" in lines[1]
    (line,) = refused("--weights", weights, *TINY, "--split", "test")
    assert line.endswith("data/tiny.yaml names no test images; add `test: FOLDER`")


def test_val_leaves_its_metrics_in_a_file(tmp_path):
    details = SimpleNamespace(
        ap_class_index=[1],
        nt_per_class=np.array([0, 7]),
        class_result=lambda place: (0.5, 0.25, 0.4, 0.2),
    )
    metrics = {"metrics/mAP50(B)": 0.4}
    result = SimpleNamespace(
        images=4,
        metrics=metrics,
        fitness=0.22,
        loss={"box_loss": 1.5},
        details=details,
        seconds=1.23456,
    )
    _write_metrics(tmp_path / METRICS_FILE, _numbers(result, ("cat", "dog")))
    left = json.loads((tmp_path / "metrics.json").read_text())
    assert (left["images"], left["metrics"], left["fitness"], left["loss"]) == (
        4,
        metrics,
        0.22,
        {"box_loss": 1.5},
    )
    assert (
        left["classes"]["dog"]["instances"] == 7
        and left["classes"]["dog"]["metrics/mAP50(B)"] == 0.4
    )
    assert list(left["classes"]) == ["dog"]


def test_a_file_of_metrics_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    _write_metrics(tmp_path / "nowhere" / METRICS_FILE, {})
    assert "metrics.json could not be written: No such file or directory" in caplog.text


def test_a_json_that_an_evaluation_does_not_use_is_said(tmp_path):
    (tmp_path / "ds.json").write_text("{}")
    asked = request(
        "--weights", weights_of("colour0", "colour1"), *TINY, "--deepspeed_config", "ds.json"
    )
    assert asked.notes == (
        "--deepspeed_config ds.json has no effect: evaluation runs in fp32, with the complete "
        "model on each rank",
    )
