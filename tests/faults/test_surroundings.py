"""What a user's shell, machine and account may be like: it works, or there is one line and exit
status 2."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.forks import environment, forked
from tests.tiny import make_dataset
from yolods import cli
from yolods.errors import UserError
from yolods.launch import supervisor
from yolods.system.folders import cache_dir

ROOT = Path(__file__).parents[2]
NOWHERE = "error: --data nowhere.yaml: no such file"
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
LEFT_OVER = {
    "Kubeflow's rank": {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "job-master-0",
        "MASTER_PORT": "23456",
    },
    "a rank that is none": {"RANK": "abc"},
    "a local rank": {"LOCAL_RANK": "3"},
    "a size that is none": {"WORLD_SIZE": "many", "LOCAL_SIZE": "x", "LOCAL_WORLD_SIZE": "y"},
    "a shell of mpirun": MPIRUN,
    "one of several of mpirun": {
        **MPIRUN,
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "3",
    },
    "a task of srun": {
        "SLURM_PROCID": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "7",
    },
    "a process of mpiexec": {"PMI_RANK": "1", "PMI_SIZE": "2", "PMIX_RANK": "1"},
    "a torchrun": {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0", "ROLE_RANK": "1"},
    "an empty accelerator": {"DS_ACCELERATOR": ""},
    "an empty rank": {"RANK": "", "OMP_NUM_THREADS": ""},
    "a terminal that is none": {
        "TERM": "",
        "COLUMNS": "x",
        "NO_COLOR": "1",
        "LANG": "xx_YY.KOI8-R",
    },
    "a folder for temporary files that is gone": {"TMPDIR": "/nowhere"},
}


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable]:
    """Runs words under variables, in a folder with a data set, and returns the lines that are told:
    (status, lines)."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervisor.subprocess, "Popen", refuse)
    make_dataset(tmp_path / "data", train=3, val=2)

    def run(variables: dict[str, str], *words: str) -> tuple[int, list[str]]:
        with mock.patch.dict(os.environ, variables):
            if "CUDA_VISIBLE_DEVICES" in variables:
                os.environ.pop("DS_ACCELERATOR", None)
            status = cli.main(list(words))
        out, err = capfd.readouterr()
        assert out == ""
        return status, err.splitlines()

    yield run


@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_is_left_over_in_a_shell_does_not_silence_the_front_door(
    told: Callable, name: str
) -> None:
    assert told(LEFT_OVER[name], "launch", "train", "--data", "nowhere.yaml") == (2, [NOWHERE])


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "1"}, "error: RANK=1 without WORLD_SIZE and LOCAL_RANK"),
        ({"RANK": "abc"}, "error: RANK=abc without WORLD_SIZE and LOCAL_RANK"),
        (LEFT_OVER["Kubeflow's rank"], "error: RANK=1 and WORLD_SIZE=2 without LOCAL_RANK"),
        ({"LOCAL_RANK": "3"}, "error: LOCAL_RANK=3 without RANK and WORLD_SIZE"),
        (
            {**MPIRUN, "OMPI_COMM_WORLD_SIZE": "x"},
            "error: OMPI_COMM_WORLD_SIZE=x is not a whole number",
        ),
    ],
)
@pytest.mark.parametrize(
    "words", [("train", "--data", "demo"), ("val", "--weights", "x.pt"), ("train", "--wrong")]
)
def test_a_rank_that_no_launcher_has_started_says_so(
    told: Callable, variables, line, words
) -> None:
    """Others than rank 0 would keep silent about it."""
    status, lines = told(variables, *words)
    assert status == 2 and len(lines) == 1 and lines[0].startswith(line) and "unset " in lines[0]


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"CUDA_VISIBLE_DEVICES": "97"}, "error: CUDA_VISIBLE_DEVICES=97: no such GPU exists"),
        (
            {"CUDA_VISIBLE_DEVICES": "GPU-no-such"},
            "error: CUDA_VISIBLE_DEVICES=GPU-no-such: no such GPU exists",
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "0,,1"},
            "error: CUDA_VISIBLE_DEVICES=0,,1: write numbers as 0,1, or only names",
        ),
        ({"DS_ACCELERATOR": "gpu"}, "error: DS_ACCELERATOR=gpu"),
        (
            {"OMP_NUM_THREADS": "two"},
            "error: OMP_NUM_THREADS=two: it must be a whole number from 1 to ",
        ),
        (
            {"GLOO_SOCKET_IFNAME": "no0"},
            "error: GLOO_SOCKET_IFNAME=no0 does not fit the interfaces of ",
        ),
    ],
)
def test_what_is_asked_for_and_not_there_gets_one_line_before_anything_starts(
    told: Callable, variables, line
) -> None:
    status, lines = told(variables, "launch", "train", "--data", "data/tiny.yaml", "--imgsz", "64")
    assert status == 2 and len(lines) == 1 and lines[0].startswith(line), lines


def test_a_rank_that_is_not_used_is_told_of_where_a_run_starts(told: Callable, capfd) -> None:
    with pytest.raises(AssertionError, match="a process was started"):
        told(
            LEFT_OVER["Kubeflow's rank"],
            "launch",
            "train",
            "--data",
            "data/tiny.yaml",
            "--imgsz",
            "64",
        )
    said = (
        "yolods: ignoring RANK=1, WORLD_SIZE=2 in the environment: launch starts and numbers the "
        "ranks itself\n"
    )
    assert capfd.readouterr().err.startswith(said)


def test_doctor_finds_what_a_start_would_be_refused_for(told: Callable, capfd, monkeypatch) -> None:
    monkeypatch.undo()
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "two"}):
        assert cli.main(["doctor"]) == 2
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("fault: OMP_NUM_THREADS=two: ") for line in lines)
    assert lines[-1].startswith("This run would fail")


def test_a_user_without_a_home_is_told_how_to_name_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(
        UserError, match="HOME is not set, and this user has no home; set YOLODS_CACHE"
    ):
        cache_dir({})
    assert cache_dir({"YOLODS_CACHE": "~nobody-of-this-name/x"}) == Path("~nobody-of-this-name/x")
    assert cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/yolods")


def as_another_user(words: list[str], cwd: str) -> int:
    """Run words as a user that the machine does not know and that may enter few folders; in a
    fork."""
    os.chdir(cwd)
    with mock.patch("yolods.launch.supervisor.supervise", return_value=0):
        cli.main(words)  # every import, from folders that the other user may not read
    sys.stderr.flush()
    os.truncate(2, 0)
    os.setgroups([])
    os.setgid(64999)
    os.setuid(64999)
    return cli.main(words)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that everybody may enter; pytest's own are the user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="yolods-open-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--data", "{closed}/x.yaml"],
            "error: {closed}/x.yaml: Permission denied; grant this user access, or choose",
        ),
        (["--data", "demo", "--hyp", "{closed}/h.yaml"], "{closed}/h.yaml"),
        (
            ["--data", "demo", "--weights", "{closed}/x.pt"],
            "error: {closed}/x.pt: Permission denied",
        ),
        (["--data", "demo", "--deepspeed_config", "{closed}/x.json"], "{closed}/x.json"),
        (
            ["--data", "demo", "--project", "{closed}/runs"],
            "error: {closed}/runs: Permission denied",
        ),
        (["--resume", "{closed}/runs/exp"], "error: {closed}/runs/exp"),
    ],
)
def test_a_folder_that_may_not_be_entered_gets_one_line(
    tmp_path: Path, open_folder: Path, words, line
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    screen = open_folder / "screen"
    cache = {name: str(open_folder) for name in ("YOLODS_CACHE", "YOLO_CONFIG_DIR", "MPLCONFIGDIR")}
    call = {
        "words": ["launch", "train", *(word.format(closed=closed) for word in words)],
        "cwd": str(open_folder),
    }
    code = forked(
        "tests.faults.test_surroundings:as_another_user",
        call,
        screen=screen,
        timeout=60,
        env={**environment(), **cache, "HOME": str(closed)},
    )
    lines = screen.read_text().splitlines()
    assert code == 2 and len(lines) == 1 and line.format(closed=closed) in lines[0], lines


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_cache_that_may_not_be_written_is_not_replaced_by_another(
    tmp_path: Path, open_folder: Path
) -> None:
    cache = open_folder / "cache"
    cache.mkdir(mode=0o755)
    variables = {name: str(cache) for name in ("YOLODS_CACHE", "YOLO_CONFIG_DIR", "MPLCONFIGDIR")}
    code = forked(
        "tests.faults.test_surroundings:as_another_user",
        {"words": ["version"], "cwd": str(open_folder)},
        screen=open_folder / "screen",
        timeout=60,
        env={**environment(), **variables},
    )
    expected = f"error: cannot write to {cache}; set YOLODS_CACHE to a writable folder\n"
    assert (code, (open_folder / "screen").read_text()) == (2, expected)


def test_a_folder_that_is_gone_gets_one_line(run_process: Callable, tmp_path: Path) -> None:
    stand = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'
    words = [
        "bash",
        "-c",
        stand,
        tmp_path / "gone",
        sys.executable,
        "-m",
        "yolods",
        "launch",
        "train",
        "--data",
        "demo",
    ]
    done = run_process(words, env={"PYTHONPATH": str(ROOT)})
    line = (
        "error: the current folder no longer exists (No such file or directory); cd to an existing "
        "one\n"
    )
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize(
    "streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"]
)
def test_streams_that_are_closed_or_full_change_no_exit_status(
    run_process: Callable, tmp_path: Path, streams
) -> None:
    words = [sys.executable, "-m", "yolods", "launch", "train", "--data", "nowhere.yaml"]
    done = run_process(
        ["bash", "-c", f'exec "$@" {streams}', "-", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("" if "2>" in streams else f"{NOWHERE}\n")


@pytest.mark.parametrize("words", [("version",), ("help",), ("train", "--help")])
def test_help_that_does_not_reach_the_screen_is_told_of(
    run_process: Callable, tmp_path: Path, words
) -> None:
    command = ["bash", "-c", 'exec "$@" >/dev/full', "-", sys.executable, "-m", "yolods", *words]
    done = run_process(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    line = (
        "error: cannot write to standard output: No space left on device; print to another place\n"
    )
    assert (done.returncode, done.stderr) == (2, line)
