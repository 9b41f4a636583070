"""The command line: words, help, exit status, and who speaks. Flags: test_config_run; mistakes:
tests/faults; each command: test_running, test_launching, test_one_process, test_parsers."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from yolods import __version__, cli
from yolods.errors import UserError

ROOT = Path(__file__).parents[2]
WORDS = ("train", "val", "export", "pack", "trace", "plan", "demo", "doctor", "launch")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_usage_names_every_word(capsys, words):
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {word} " in shown for word in WORDS)


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version(capsys, word):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("words", [["trace"], ["launch", "trace"]])
def test_a_trace_lists_the_launchers_flags_too(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and "usage: yolods trace" in shown
    assert all(flag in shown for flag in ("RUN", "--steps", "--epoch", "--hostfile", "--num_gpus"))


@pytest.mark.process
@pytest.mark.parametrize(
    "words", [["train", "--help"], ["launch", "train", "--data", "nowhere.yaml"]]
)
def test_what_starts_no_training_needs_no_torch(words):
    script = (
        f"import sys\nfrom yolods.cli import main\ntry:\n  main({words})\nfinally:\n"
        "  print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert "yolods.cli" in loaded and "torch" not in loaded


def failing_with(error: BaseException):
    def fail(_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UserError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (UserError("a list:\n\nend"), 2, "error: a list:\n\nerror: end\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_status(monkeypatch, capsys, error, code, shown):
    monkeypatch.setattr(cli, "_dispatch", failing_with(error))
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == shown


def test_a_fault_of_ours_is_not_taken_for_the_users(monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", failing_with(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train"])


@pytest.mark.parametrize(("rank", "shown"), [("0", "error: said once\n"), ("1", "")])
def test_what_all_ranks_raise_is_said_by_the_first(monkeypatch, capsys, rank, shown):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(cli, "_dispatch", failing_with(UserError("said once")))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize("place", ["--local_rank=3", "--local-rank=3", "--local_rank 3"])
def test_deepspeeds_own_flag_may_stand_before_the_word(capsys, place):
    """`deepspeed --module yolods train` makes it `yolods --local_rank=3 train`."""
    assert cli.main([*place.split(), "version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    "words", [("train", "--mosaik", "1"), ("launch", "train", "--mosaik", "1")]
)
def test_devices_that_another_start_has_left_in_the_shell_are_not_taken(monkeypatch, words):
    monkeypatch.setenv("YOLODS_VISIBLE_DEVICES", "foo")
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert cli.main(list(words)) == 2
    assert (
        "YOLODS_VISIBLE_DEVICES" not in os.environ
        and os.environ.get("CUDA_VISIBLE_DEVICES") == before
    )


@pytest.mark.parametrize(
    "words", [("-help",), ("train", "-help"), ("val", "-help"), ("launch", "train", "-help")]
)
def test_help_with_one_dash_is_shown(capsys, words):
    with suppress(SystemExit):
        assert cli.main(list(words)) == 0
    assert capsys.readouterr().out.startswith("usage: yolods")
