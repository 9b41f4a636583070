"""The command line: words, help, exit status, and who speaks. Flags: test_config_run; mistakes:
tests/faults."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.packs import AS_IS, make_odd_set, packed_yaml
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


@pytest.mark.parametrize(
    "words",
    [["train"], ["val"], ["export"], ["pack"], ["launch", "train"], ["launch", "val"]],
)
def test_every_word_lists_its_flags(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"usage: yolods {words[-1]}" in shown
    assert any(flag in shown for flag in ("--weights", "--to", "--shard-size"))
    if words[-1] in ("train", "val"):
        assert all(
            flag in shown for flag in ("--hostfile", "--num_gpus", "--launcher", "--max_restarts")
        )


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


def test_the_demo_is_training_with_flags_that_can_be_overruled(monkeypatch):
    typed = []
    monkeypatch.setattr(cli, "_train", lambda words: typed.append(words) or 0)
    assert cli.main(["demo", "--epochs", "1"]) == 0
    args = cli._train_parser().parse_args(typed[0])
    assert (args.data, args.epochs, args.name) == ("demo", 1, "demo")


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


MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize("variables", [MPIRUN, SRUN], ids=["mpirun", "srun"])
def test_a_rank_of_another_launcher_is_not_checked_as_if_it_were_alone(
    monkeypatch, capsys, variables
):
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "_train_rank", lambda args, claim: 0)
    words = ["train", "--data", "demo", "--imgsz", "64", "--deepspeed_config", "pipeline2_fp32"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--epoch", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown flag --epoch")
    monkeypatch.setenv(next(iter(variables)), "1")
    assert cli.main([*words, "--epoch", "3"]) == 2
    assert capsys.readouterr().err == ""


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


@pytest.fixture
def doctor(monkeypatch):
    """`yolods doctor` without a visit: its status, what it found before it asked hosts, and what it
    printed."""
    asked = []

    def visit(hosts, flags, *, faults, **settings):
        asked.append({**settings, "faults": list(faults)})
        return ["verdict"], not faults

    monkeypatch.setattr("yolods.doctor.run.run_doctor", visit)
    monkeypatch.setattr(cli, "_count_gpus", lambda: 0)

    def run(*words: str) -> tuple[int, dict]:
        return cli.main(["launch", "doctor", *words]), asked[-1]

    return run


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"foo": 1}', 'ds.json: unknown key "foo"'),
        (
            '{"fp16": {"enabled": true}, "zero_optimization": {"stage": 1}}',
            "the CPU backend has no fp16",
        ),
        ('{"pipeline": {"stages": 4}}', '"pipeline".stages 4 does not divide 2 ranks'),
        ('{"train_batch_size": 3}', "train_batch_size 3 / (2 ranks) = 1.50 is not an integer"),
        ('{"zero_optimization": {"offload_optimizer": "cpu"}}', "it must be an object"),
    ],
)
def test_doctor_does_not_pass_a_json_that_train_refuses(tmp_path, monkeypatch, doctor, text, told):
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text(text)
    status, found = doctor("--num_gpus", "2", "--deepspeed_config", "ds.json")
    assert status == 2 and len(found["faults"]) == 1 and told in found["faults"][0]


def test_doctor_leaves_the_batch_to_the_start(tmp_path, monkeypatch, doctor):
    """16 images, the default of --batch-size, cannot be divided evenly among 5 ranks; others
    can."""
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text(
        '{"gradient_accumulation_steps": 2, "zero_optimization": {"offload_optimizer": null}}'
    )
    assert doctor("--num_gpus", "5", "--deepspeed_config", "ds.json")[0] == 0


def test_doctor_counts_a_json_that_is_not_there_once(tmp_path, monkeypatch, doctor):
    monkeypatch.chdir(tmp_path)
    assert len(doctor("--deepspeed_config", "nope")[1]["faults"]) == 1
    assert len(doctor("--deepspeed_config", "nope.json")[1]["faults"]) == 1


def test_doctor_leaves_a_pack_that_is_cut_off_to_the_reports_of_the_hosts(
    tmp_path, monkeypatch, doctor, capsys
):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    yaml = packed_yaml(make_odd_set(tmp_path / "set"), tmp_path / "out", AS_IS)
    shard = tmp_path / "out/train.pack/00000.tar"
    whole = shard.read_bytes()
    os.truncate(shard, len(whole) // 2)
    status, found = doctor("--data", str(yaml))
    assert (status, found["faults"]) == (0, [])
    assert str(tmp_path / "out/train.pack") in found["trees"]
    assert capsys.readouterr().out.splitlines() == [cli.NO_LEAKS, "verdict"]
    shutil.rmtree(tmp_path / "out/val.pack/index")  # which no report shows
    shard.write_bytes(whole)
    (line,) = doctor("--data", str(yaml))[1]["faults"]
    assert "out/val.pack/index is damaged" in line


def test_doctor_says_that_a_start_would_download_what_is_not_here(tmp_path, doctor, capsys):
    file = tmp_path / "data.yaml"
    file.write_text("train: images\nval: images\nnames: [x]\ndownload: https://example.org/x.zip\n")
    status, found = doctor("--data", str(file))
    assert (status, found["trees"], found["faults"]) == (0, (), [])
    told = f"{file}: some of its images are missing; a start would download them first"
    assert capsys.readouterr().out.splitlines() == [told, "verdict"]
