"""`yolods launch`: what it starts, who claims the run's folder, and which faults it adds up."""

import json
import os

import pytest

from yolods import cli
from yolods.commands import launching
from yolods.errors import UserError


def test_of_a_start_on_every_host_the_first_one_claims_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    started = []

    def supervise(first, again, *, restarts):
        started.append((list(first.command), sorted(path.name for path in tmp_path.glob("runs/*"))))
        return 0

    monkeypatch.setattr("yolods.launch.supervisor.supervise", supervise)
    place = ["--hostfile", "hosts", "--no_ssh", "--master_addr", "a", "--node_rank"]
    for node in ("0", "1"):
        assert cli.main(["launch", "train", "--data", "demo", *place, node]) == 0
    (first, made), (second, none) = started
    assert (made, none) == (["exp"], [])
    assert first[first.index("--run-dir") + 1] == str(tmp_path / "runs" / "exp")
    assert "--run-dir" not in second
    assert second[-2] == "--tell"
    assert not (tmp_path / "runs").exists(), "nothing has come of either"


def test_a_call_from_python_is_told_the_folder_and_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLODS_CALLER", str(tmp_path / "told"))
    started, tied = [], []

    def supervise(first, again, *, restarts):
        started.append(list(first.command))
        assert "YOLODS_CALLER" not in os.environ, "it is none of the ranks' business"
        return 0

    monkeypatch.setattr("yolods.launch.supervisor.supervise", supervise)
    monkeypatch.setattr("yolods.launch.supervisor.end_with_parent", lambda: tied.append(1))
    assert cli.main(["launch", "train", "--data=demo", "--imgsz=64", "--loggers=jsonl"]) == 0
    (command,) = started
    folder, start = json.loads((tmp_path / "told").read_text())
    assert folder == command[command.index("--run-dir") + 1] == str(tmp_path / "runs" / "exp")
    assert start == command[command.index("--start-id") + 1]
    assert "--loggers=jsonl" in command and tied == [1]


def test_a_word_that_needs_no_launcher_goes_to_its_command():
    seen = []
    assert (
        launching.launch(["--num_gpus", "2", "version"], dispatch=lambda w: seen.append(w) or 7)
        == 7
    )
    assert seen == [["version"]]


@pytest.mark.parametrize(("ranks", "lines"), [(1, ["always", "of 1"]), (None, ["always"])])
def test_with_unknown_ranks_only_what_any_number_refuses_is_told(ranks, lines):
    def check(count):
        raise UserError(f"always\nof {count}")

    assert launching._refused(check, ranks) == lines
    assert launching._refused(lambda count: None, ranks) == []
