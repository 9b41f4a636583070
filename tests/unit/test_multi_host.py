"""What follows in the launcher's command where ranks are started on other hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from yolods.errors import UserError
from yolods.hosts.env_forwarding import environment_file, shell_word
from yolods.hosts.hostfile import Host
from yolods.launch import multi_host
from yolods.launch.args import LaunchFlags
from yolods.launch.multi_host import ALIVE, meeting_address, over_hosts

PYTHON = "/env/bin/python"
HOSTS = (Host("a.invalid", 2, (0, 1)), Host("b.invalid", 2, (0, 1)))
WORDS = ["train", "--name", "a b", "--model", "yolov5[2.0,2.0]"]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder to start in, and another for a home, on a machine that has every launcher."""
    monkeypatch.setattr("shutil.which", lambda tool, path=None: f"/usr/bin/{tool}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def command(flags: LaunchFlags, hosts=HOSTS, *, python=PYTHON, settings=None, **environ):
    words, variables = over_hosts(
        WORDS, flags, hosts, settings=settings or {}, python=python, environ=environ
    )
    return words, variables


def test_pdsh_and_what_travels(place):
    """Last comes what the user wrote in files; those are as they were."""
    (place / "home" / ".deepspeed_env").write_text("A=x y\n", encoding="utf-8")
    (place / "here" / ".deepspeed_env").write_text("OMP_NUM_THREADS=9\n", encoding="utf-8")
    flags = LaunchFlags(master_addr="10.0.0.1", master_port=7, ssh_port=2222, launcher_args="-d")
    given = {
        "OMP_NUM_THREADS": "3",
        "YOLODS_CACHE": "/c d",
        "PATH": "/bin",
        "DS_ACCELERATOR": "",
        "HOME": "/h",
    }
    words, variables = command(
        flags, settings={"MALLOC_TOP_PAD_": "1", "OMP_NUM_THREADS": "1"}, **given
    )
    start = (
        "--no_ssh_check --launcher pdsh --master_port 7 --master_addr 10.0.0.1 --launcher_args=-d "
        "--ssh_port 2222"
    )
    assert words[:-5] == [*start.split(), "--module", "yolods"]
    assert words[-5:] == ["train", "--name", "a b", "--model", "'yolov5[2.0,2.0]'"]
    assert list(variables) == ["DS_ENV_FILE", "PDSH_SSH_ARGS_APPEND"]
    assert variables["PDSH_SSH_ARGS_APPEND"] == ALIVE
    lines = Path(variables["DS_ENV_FILE"]).read_text().splitlines()
    assert lines == [
        "MALLOC_TOP_PAD_=1",
        "OMP_NUM_THREADS=3",
        "YOLODS_CACHE=/c d",
        "A=x y",
        "OMP_NUM_THREADS=9",
    ]
    assert (place / "home" / ".deepspeed_env").read_text() == "A=x y\n"


def test_the_master_is_left_to_deepspeed_where_the_first_host_is_another_machine(place):
    assert "--master_addr" not in command(LaunchFlags())[0]


def test_the_master_is_this_machines_address_that_leads_to_the_second_host(monkeypatch):
    monkeypatch.setattr(multi_host, "is_here", lambda name: name == "a.invalid")
    monkeypatch.setattr(multi_host, "own_address_toward", {"b.invalid": "10.0.0.1"}.get)
    assert meeting_address(LaunchFlags(), HOSTS) == "10.0.0.1"
    assert meeting_address(LaunchFlags(master_addr="x"), HOSTS) == "x"
    assert meeting_address(LaunchFlags(), HOSTS[::-1]) is None
    assert meeting_address(LaunchFlags(), HOSTS[:1]) is None


def test_the_import_path_is_the_users_own_where_he_wants_it_safe(place):
    """DeepSpeed puts the working directory on it."""
    for given, expected in (({}, "PYTHONPATH=\n"), ({"PYTHONPATH": "/p"}, "PYTHONPATH=/p\n")):
        _, variables = command(LaunchFlags(), PYTHONSAFEPATH="1", **given)
        assert Path(variables["DS_ENV_FILE"]).read_text() == expected


def test_mpirun(place):
    (place / "home" / ".deepspeed_env").write_text("GLOO_X=1\n", encoding="utf-8")
    flags = LaunchFlags(
        launcher="openmpi", master_addr="10.0.0.1", ssh_port=22, launcher_args="--allow-run-as-root"
    )
    words, variables = command(flags, GLOO_X="2", NCCL_DEBUG="INFO", YOLODS_CACHE="/c d")
    args = (
        "--launcher_args=-x YOLODS_CACHE -x MASTER_ADDR -x MASTER_PORT --mca plm_rsh_args '-p 22' "
        "--allow-run-as-root"
    )
    assert words == [
        *["--no_ssh_check", "--launcher", "openmpi", "--master_addr", "10.0.0.1"],
        args,
        "--module",
        "yolods",
        *WORDS,
    ]
    assert variables["MASTER_PORT"] == "29500" and variables["YOLODS_CACHE"] == "/c d"


def test_srun(place):
    words, variables = command(LaunchFlags(launcher="slurm", master_addr="10.0.0.1", master_port=7))
    args = "--launcher_args=--nodes=2 --ntasks-per-node=2 --nodelist=a.invalid,b.invalid"
    script = str(Path(multi_host.__file__).parents[1] / "__main__.py")
    start = "--no_ssh_check --launcher slurm --master_port 7 --master_addr 10.0.0.1"
    assert words == [*start.split(), args, script, *WORDS]
    assert variables == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7", "PYTHONSAFEPATH": "1"}


@pytest.mark.parametrize(
    ("flags", "hosts", "message"),
    [
        ({"launcher": "openmpi", "include": "a"}, HOSTS, "uses the whole hostfile; omit --include"),
        (
            {"launcher": "slurm"},
            (HOSTS[0], Host("c", 2, (0,))),
            "the same slots on every host, not a.invalid 2, c 1",
        ),
        (
            {"launcher": "slurm"},
            (Host("c", 2, (1,)), Host("d", 2, (1,))),
            "uses a host's first slots, not c:1; use",
        ),
        ({"launcher": "slurm", "ssh_port": 1}, HOSTS, "does not use ssh; omit --ssh_port"),
        ({"launcher": "slurm"}, HOSTS, "the name a.invalid resolves to nothing here"),
    ],
)
def test_what_a_launcher_cannot_do(place, flags, hosts, message):
    with pytest.raises(UserError, match=message):
        command(LaunchFlags(**flags), hosts)


def test_a_launcher_that_is_not_installed(place, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda tool, path=None: None)
    for launcher, (tool, remedy) in multi_host.TOOLS.items():
        with pytest.raises(
            UserError, match=f"no {tool} here, which --launcher {launcher} needs: {remedy}"
        ):
            command(LaunchFlags(launcher=launcher))


def test_paths_that_pdsh_would_tear_apart(place, monkeypatch):
    with pytest.raises(UserError, match="Python's path, /my env/python, has a character"):
        command(LaunchFlags(), python="/my env/python")
    (place / "here" / "a b").mkdir()
    monkeypatch.chdir(place / "here" / "a b")
    with pytest.raises(UserError, match=r"the current folder, .*/a b, has a character"):
        command(LaunchFlags())


def test_a_bad_line_of_the_users_file(place):
    (place / "home" / ".deepspeed_env").write_text("A\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1: `A`: write NAME=value"):
        command(LaunchFlags())


AWKWARD = [
    "plain",
    "a b",
    "a  b;c",
    "it's",
    'say "hi" now',
    "$HOME",
    "$HOME now",
    "`id`",
    "a\\b",
    "a\\ b",
    "*",
    "x[2]",
    "é",
    "a\tb",
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_words_and_values_arrive_whole(text):
    """Through DeepSpeed's own quoting and a shell; pdsh itself is in
    tests/dist/test_two_hosts.py."""
    from deepspeed.launcher import runner
    from deepspeed.launcher.multinode_runner import PDSHRunner

    parsed = runner.parse_args(["--hostfile", "x", "--master_addr", "y", "prog", shell_word(text)])
    remote = PDSHRunner(parsed, "none")
    for line in environment_file({"VALUE": text}, []).read_text().splitlines():
        remote.add_export(*line.split("=", maxsplit=1))
    exports = "".join(f"export {name}={value}; " for name, value in remote.exports.items())
    line = " ".join([exports, "printf '%s|%s'", *remote.user_arguments, '"$VALUE"'])
    shown = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert shown == f"{text}|{text}"


def test_what_pdsh_would_replace():
    assert shell_word("100%h") == "100%%h"
    assert environment_file({"A": "%n"}, []).read_text() == "A=%%n\n"
