"""What `yolods trace` refuses before a process starts, and how it starts the run's own ranks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_dataset
from yolods import cli
from yolods.config import add_train_arguments, build_run_config
from yolods.errors import UserError
from yolods.launch.args import LaunchFlags
from yolods.training.checks.trace_check import flags_of_run, trace_flags, traced_config

RUN = Path("runs/exp")
WORDS = ("--data", "data/tiny.yaml", "--model", "yolov5n", "--imgsz", "64", "--batch-size", "4")


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run of three epochs on two ranks, as far as its files of text go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOSTFILE", raising=False)
    make_dataset(tmp_path / "data", train=4, val=1)
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = parser.parse_args([*WORDS, "--epochs", "3"])
    config = build_run_config(words, world_size=2, device="cpu")
    checkpoint = RUN / "checkpoints" / "step00000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text('{"run": "", "step": 3, "epochs_done": 3}')
    (checkpoint / "model.json").write_text("{}")
    (RUN / "checkpoints" / "latest").write_text(checkpoint.name)
    ended = {"run": "", "start": "", "step": 3, "status": 0}
    (RUN / "checkpoints" / "ended").write_text(json.dumps(ended))
    (RUN / "config.json").write_text(config.to_json())


def typed(*words: str) -> argparse.Namespace:
    return trace_flags().take(words)


def came_from(command: str, hosts: Sequence[str] = ("here",)) -> None:
    """Record how the run was started."""
    saved = json.loads((RUN / "config.json").read_text())
    devices = [[host, "a CPU", 1] for host in hosts]
    saved["provenance"] = {"command": command, "folder": "/a/folder", "devices": devices}
    (RUN / "config.json").write_text(json.dumps(saved))


def test_a_finished_run_is_traced_beside_itself() -> None:
    config = traced_config(typed(str(RUN), "--steps", "7", "--epoch", "2"), 2, "cpu")
    assert config.only_traced and config.trace == 7
    assert (config.run_dir, config.resume) == (RUN / "trace", RUN)
    assert config.checkpoints == RUN / "checkpoints" and config.loggers == ()
    assert traced_config(typed(str(RUN / "checkpoints")), 2, "cpu").trace == 5
    assert not (RUN / "trace").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs/ex"], "trace runs/ex: no such folder (did you mean 'runs/exp'?)"),
        (["data"], "trace data: not a run's folder, it has no config.json"),
        ([str(RUN), "--steps", "0"], "--steps"),
        ([str(RUN), "--steps", "101"], "--steps"),
        ([str(RUN), "--steps", "x"], "--steps"),
        ([str(RUN), "--epoch", "0"], "--epoch"),
        ([str(RUN), "--epoch", "4"], "--epoch"),
        ([str(RUN), "--batch", "4"], "--batch"),
        ([], "RUN"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], told: str, capsys: Any) -> None:
    assert cli.main(["trace", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.startswith("error: ") and told in shown
    assert not (RUN / "trace").exists()


def test_without_a_checkpoint_the_other_way_is_named() -> None:
    (RUN / "checkpoints" / "step00000003" / "progress.json").unlink()
    (RUN / "checkpoints" / "step00000003").rename(RUN / "checkpoints" / "x")
    with pytest.raises(UserError, match=r"no checkpoint to start from; .* train --trace N"):
        traced_config(typed(str(RUN)), 2, "cpu")


def test_what_prevents_a_start_is_told_before_it() -> None:
    assert traced_config(typed(str(RUN)), 2, "cpu", launches=True).trace == 5
    Path("data/tiny.yaml").unlink()
    with pytest.raises(UserError, match=r"tiny\.yaml"):
        traced_config(typed(str(RUN)), 2, "cpu", launches=True)
    model = {"names": ["a"], "architecture": {}}
    (RUN / "checkpoints" / "step00000003" / "model.json").write_text(json.dumps(model))
    make_dataset(Path("other"), train=4, val=1).rename("data/tiny.yaml")
    with pytest.raises(UserError, match=r"names 2 classes .* has 1 class"):
        traced_config(typed(str(RUN)), 2, "cpu", launches=True)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("yolods launch train --data x --num_gpus 2", LaunchFlags(num_gpus=2)),
        ("yolods launch train --data x --num_gpus 3", LaunchFlags(num_gpus=2)),  # resumed since
        ("./launch.sh train --data 'a b' --master_port 7", LaunchFlags()),
        ("deepspeed --module yolods train --data x", LaunchFlags()),
    ],
)
def test_it_runs_on_the_ranks_of_the_run(command: str, flags: LaunchFlags) -> None:
    came_from(command)
    assert flags_of_run(typed(str(RUN)), LaunchFlags(), gpus=0) == flags


def test_it_runs_on_the_hosts_of_the_run_unless_others_are_typed(tmp_path: Path) -> None:
    came_from("yolods launch train --data x --hostfile hosts", ("a", "b"))
    assert flags_of_run(typed(str(RUN)), LaunchFlags(), gpus=0).hostfile == Path("/a/folder/hosts")
    other = LaunchFlags(hostfile=Path("other"))
    assert flags_of_run(typed(str(RUN)), other, gpus=0) == other


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("yolods launch train --data x", "runs/exp ran on a, b: add --hostfile FILE"),
        (
            "yolods launch train --hostfile h --no_ssh --node_rank 0",
            "add --hostfile FILE, and start the trace on every host as the run",
        ),
    ],
)
def test_hosts_that_are_not_known_are_asked_for(command: str, told: str) -> None:
    came_from(command, ("a", "b"))
    with pytest.raises(UserError, match=told):
        flags_of_run(typed(str(RUN)), LaunchFlags(), gpus=0)


def test_a_run_of_before_has_no_record_of_its_start() -> None:
    assert flags_of_run(typed(str(RUN)), LaunchFlags(), gpus=0) == LaunchFlags()
