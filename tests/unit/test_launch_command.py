"""The launcher's command line; one test starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolods import compat, errors
from yolods.errors import UserError
from yolods.hosts.hostfile import Host
from yolods.launch import command as launch
from yolods.launch import deepspeed_runner, node_launcher, supervisor
from yolods.launch.args import LaunchFlags, split_words
from yolods.launch.command import ALLOCATOR, free_port, launcher_command, ranks_of, unused_flags
from yolods.system import folders, interrupt

ROOT = Path(__file__).parents[2]
PYTHON = "/env/bin/python"
SET = {"PATH": "/env/bin:/usr/bin"}
HEAD = [PYTHON, "-m", "yolods.launch.deepspeed_runner", "--no_local_rank"]
TAIL = ["--module", "yolods", "train", "--data", "x.yaml"]


def hostfile(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "hosts"
    file.write_text(text, encoding="utf-8")
    return file


def command(
    flags: LaunchFlags, *, gpus: int = 0, cores: int = 4, **variables: str
) -> tuple[list[str], dict[str, str]]:
    return launcher_command(
        ["train", "--data", "x.yaml"],
        flags,
        gpus=gpus,
        python=PYTHON,
        cores=cores,
        environ={**SET, **variables},
    )


def test_two_cpu_ranks_without_a_hostfile():
    words, variables = command(LaunchFlags(master_port=1234))
    alone = ["--log_level", "error", "--hostfile", os.devnull]
    assert words == [*HEAD, *alone, "--num_gpus", "2", "--master_port", "1234", *TAIL]
    assert variables == {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "2", **ALLOCATOR}


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(2, 2, "1"), (8, 2, "4"), (9, 2, "4"), (1, 2, "1"), (8, 4, "2")]
)
def test_cores_are_shared_among_cpu_ranks(cores, ranks, threads):
    assert command(LaunchFlags(num_gpus=ranks), cores=cores)[1]["OMP_NUM_THREADS"] == threads


def test_what_the_user_has_set_is_left_alone():
    mine = {
        "OMP_NUM_THREADS": "7",
        "DS_ACCELERATOR": "cpu",
        "GLIBC_TUNABLES": "x=1",
        "MALLOC_TOP_PAD_": "0",
    }
    variables = command(LaunchFlags(), **mine)[1]
    assert not set(mine) & set(variables)
    assert "MALLOC_TRIM_THRESHOLD_" in variables


def test_all_local_gpus_and_nothing_set_for_them():
    words, variables = command(LaunchFlags(master_port=1), gpus=4)
    assert words[-9:] == ["--num_gpus", "4", "--master_port", "1", *TAIL]
    assert variables == {}


def test_some_local_gpus():
    assert "--num_gpus 3 " in " ".join(command(LaunchFlags(num_gpus=3), gpus=4)[0])
    with pytest.raises(UserError, match="--num_gpus 5: this machine has 4 usable GPUs"):
        command(LaunchFlags(num_gpus=5), gpus=4)


def test_cuda_visible_devices_is_honoured():
    """With --num_gpus DeepSpeed takes the machine's first GPUs, whatever the variable says."""
    words = " ".join(command(LaunchFlags(), gpus=2, CUDA_VISIBLE_DEVICES="2,3")[0])
    assert "--include localhost:2,3 " in words and "--num_gpus" not in words
    assert ranks_of(LaunchFlags(), gpus=2, environ={"CUDA_VISIBLE_DEVICES": "2,3"}) == 2
    words = " ".join(command(LaunchFlags(num_gpus=1), gpus=2, CUDA_VISIBLE_DEVICES="2,3")[0])
    assert "--include localhost:2 " in words


def test_filters_choose_among_the_gpus_that_are_visible():
    """DeepSpeed would count --exclude from the machine's first GPU on, and take those that are not
    visible."""
    words = " ".join(
        command(LaunchFlags(exclude="localhost:2"), gpus=3, CUDA_VISIBLE_DEVICES="2,3,5")[0]
    )
    assert "--include localhost:3,5 " in words and "--exclude" not in words
    words = " ".join(
        command(LaunchFlags(include="localhost:5"), gpus=3, CUDA_VISIBLE_DEVICES="2,3,5")[0]
    )
    assert "--include localhost:5 " in words
    with pytest.raises(UserError, match="localhost has no slot '0'; its slots are 2, 3, 5"):
        command(LaunchFlags(include="localhost:0,2"), gpus=3, CUDA_VISIBLE_DEVICES="2,3,5")


@pytest.mark.parametrize("names", ["GPU-8932f937,GPU-1d07e", "MIG-8932f937"])
def test_gpus_that_are_named_by_uuid_travel_by_name(names):
    """Without them DeepSpeed starts on GPUs 0 to N-1, perhaps another user's."""
    count = names.count(",") + 1
    words, variables = command(LaunchFlags(), gpus=count, CUDA_VISIBLE_DEVICES=names)
    assert f"--include localhost:{','.join(map(str, range(count)))} " in " ".join(words)
    assert variables == {"YOLODS_VISIBLE_DEVICES": names}
    assert ranks_of(LaunchFlags(), gpus=count, environ={"CUDA_VISIBLE_DEVICES": names}) == count


def test_a_comma_behind_the_last_gpu_changes_nothing():
    words = " ".join(command(LaunchFlags(), gpus=2, CUDA_VISIBLE_DEVICES="2,3,")[0])
    assert "--include localhost:2,3 " in words


@pytest.mark.parametrize("hidden", ["-1", "NoDevFiles"])
def test_where_no_gpu_is_visible_ranks_compute_on_the_cpu_and_see_none_either(hidden):
    words, variables = command(LaunchFlags(), gpus=0, CUDA_VISIBLE_DEVICES=hidden)
    assert "--num_gpus 2 " in " ".join(words)
    assert (variables["DS_ACCELERATOR"], variables["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


@pytest.mark.parametrize("names", ["2,3", "GPU-a,GPU-b"])
def test_slots_of_a_hostfile_are_places_among_the_gpus_that_are_visible(tmp_path, names):
    """DeepSpeed takes the slots for numbers of GPUs: it would start on 0 and 1."""
    flags = LaunchFlags(hostfile=hostfile(tmp_path, "localhost slots=2\n"))
    assert command(flags, gpus=2, CUDA_VISIBLE_DEVICES=names)[1] == {
        "YOLODS_VISIBLE_DEVICES": names
    }
    far = LaunchFlags(hostfile=hostfile(tmp_path, "a slots=3\n"))
    with pytest.raises(
        UserError,
        match=f"a has slots=3, but CUDA_VISIBLE_DEVICES={names} names 2 GPUs; write slots=2",
    ):
        command(far, gpus=2, CUDA_VISIBLE_DEVICES=names)


@pytest.mark.parametrize(
    ("names", "fine"), [("0,1,2,3", True), ("2,3", False), ("GPU-a,GPU-b", False), (None, True)]
)
def test_over_several_hosts_the_gpus_of_this_one_are_not_exchanged_for_others(
    tmp_path, monkeypatch, names, fine
):
    monkeypatch.setattr("shutil.which", lambda tool, path=None: f"/usr/bin/{tool}")
    monkeypatch.setattr(launch, "is_here", lambda name: name == "a")
    flags = LaunchFlags(
        hostfile=hostfile(tmp_path, "a slots=2\nb slots=2\n"), master_addr="10.0.0.1"
    )
    variables = {} if names is None else {"CUDA_VISIBLE_DEVICES": names}
    if fine:
        command(flags, gpus=2, **variables)
        return
    with pytest.raises(
        UserError,
        match=f"CUDA_VISIBLE_DEVICES={names} applies to this machine only, .* would use a:0,1; ",
    ):
        command(flags, gpus=2, **variables)


def test_what_ranks_cannot_use_is_refused_before_the_launcher():
    with pytest.raises(UserError, match="OMP_NUM_THREADS=many: it must be a whole number"):
        command(LaunchFlags(), OMP_NUM_THREADS="many")
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME=eth77 does not fit the interfaces of"):
        command(LaunchFlags(), GLOO_SOCKET_IFNAME="eth77")


def test_a_hostfile_with_a_byte_order_mark_is_handed_to_deepspeed_without(tmp_path):
    file = tmp_path / "hosts"
    file.write_bytes("\ufeff# Köln\r\nlocalhost slots=2\r\n".encode())
    words = command(LaunchFlags(hostfile=file))[0]
    assert Path(words[words.index("--hostfile") + 1]).read_bytes() == b"localhost slots=2\n"
    assert ranks_of(LaunchFlags(hostfile=file), gpus=0, environ={}) == 2


def test_a_local_run_picks_a_free_port():
    words = command(LaunchFlags())[0]
    port = int(words[words.index("--master_port") + 1])
    assert 1024 <= port < 65536 and port != 29500
    assert isinstance(free_port(), int)


def test_a_hostfile_of_this_machine_needs_no_ssh(tmp_path):
    file = hostfile(tmp_path, "localhost slots=2\n")
    words, variables = command(LaunchFlags(hostfile=file, master_port=5))
    place = [
        "--log_level",
        "warning",
        "--hostfile",
        str(file),
        "--no_ssh_check",
        "--master_addr",
        "127.0.0.1",
    ]
    assert words == [*HEAD, *place, "--master_port", "5", *TAIL]
    assert variables["DS_ACCELERATOR"] == "cpu"


def test_a_single_host_starts_here_whatever_its_name(tmp_path):
    """DeepSpeed (0.19.8) does so, after it has asked the host for its address through ssh."""
    words, variables = command(LaunchFlags(hostfile=hostfile(tmp_path, "a slots=2\n")))
    assert "--no_ssh_check --master_addr 127.0.0.1" in " ".join(words)
    assert variables["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize(
    ("gpus", "here", "cpus"), [(0, "b", True), (0, "c", False), (2, "b", False)]
)
def test_hosts_without_gpus_where_this_one_is_among_them_and_has_none(
    tmp_path, monkeypatch, gpus, here, cpus
):
    monkeypatch.setattr("shutil.which", lambda tool, path=None: f"/usr/bin/{tool}")
    monkeypatch.setattr(launch, "is_here", lambda name: name == here)
    file = hostfile(tmp_path, "a slots=2\nb slots=2\n")
    variables = command(LaunchFlags(hostfile=file), gpus=gpus)[1]
    lines = Path(variables["DS_ENV_FILE"]).read_text().splitlines()
    assert ("DS_ACCELERATOR" in variables) == cpus
    assert lines == (
        ["DS_ACCELERATOR=cpu", *(f"{name}={value}" for name, value in ALLOCATOR.items())]
        if cpus
        else []
    )
    assert not any(
        line.startswith("OMP_NUM_THREADS") for line in lines
    )  # hosts may have other numbers of cores


def test_every_host_starts_its_own_ranks(tmp_path):
    file = hostfile(tmp_path, "a slots=2\nb slots=4\n")
    flags = LaunchFlags(hostfile=file, no_ssh=True, node_rank=1, master_addr="a.net")
    words, variables = command(flags, cores=8)
    place = [
        "--hostfile",
        str(file),
        "--no_ssh_check",
        "--master_addr",
        "a.net",
        "--no_ssh",
        "--node_rank",
        "1",
    ]
    assert words == [*HEAD, "--log_level", "warning", *place, *TAIL]
    assert (variables["DS_ACCELERATOR"], variables["OMP_NUM_THREADS"]) == ("cpu", "2")
    assert ranks_of(flags, gpus=0, environ={}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"master_addr": None}, "--no_ssh needs --hostfile, --master_addr and --node_rank"),
        ({"node_rank": None}, "--no_ssh needs --hostfile, --master_addr and --node_rank"),
        ({"node_rank": 2}, "--node_rank 2: 2 hosts take part, counted from 0"),
        ({"no_ssh": False}, "--node_rank tells which host this is"),
        ({"gpus": 3}, "b has slots=4, but this machine has 3 GPUs"),
    ],
)
def test_mistakes_of_a_start_on_every_host(tmp_path, changes, message):
    file = hostfile(tmp_path, "a slots=2\nb slots=4\n")
    given = {"no_ssh": True, "node_rank": 1, "master_addr": "a.net", **changes}
    gpus = given.pop("gpus", 0)
    with pytest.raises(UserError, match=message):
        command(LaunchFlags(hostfile=file, **given), gpus=gpus)


def test_more_local_slots_than_gpus(tmp_path):
    file = hostfile(tmp_path, "localhost slots=2\n")
    with pytest.raises(UserError, match="localhost has slots=2, but this machine has 1 GPUs"):
        command(LaunchFlags(hostfile=file), gpus=1)


def test_filters_reach_deepspeed_and_the_number_of_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda tool, path=None: f"/usr/bin/{tool}")
    file = hostfile(tmp_path, "a slots=2\nb slots=4\n")
    some = LaunchFlags(hostfile=file, include="b:0,2@a")
    assert "--include b:0,2@a" in " ".join(command(some)[0])
    assert ranks_of(some, gpus=0, environ={}) == 4
    few = LaunchFlags(hostfile=file, exclude="b")
    assert "--exclude b" in " ".join(command(few)[0])
    assert ranks_of(few, gpus=0, environ={}) == 2
    each = LaunchFlags(hostfile=file, num_gpus=1)
    assert "--num_gpus 1" in " ".join(command(each)[0])
    assert ranks_of(each, gpus=0, environ={}) == 2
    with pytest.raises(UserError, match="--num_gpus 3: a has 2 slots"):
        command(LaunchFlags(hostfile=file, num_gpus=3))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (LaunchFlags(num_gpus=0), "--num_gpus 0: it must be at least 1"),
        (
            LaunchFlags(num_gpus=1, include="localhost"),
            "--num_gpus cannot be combined with --include",
        ),
        (LaunchFlags(hostfile=Path("none")), "--hostfile none: no such file"),
        (LaunchFlags(include="localhost:5"), "localhost has no slot '5'"),
    ],
)
def test_mistakes_are_found_before_the_launcher(flags, message):
    with pytest.raises(UserError, match=message):
        command(flags)


def test_the_environments_tools_are_on_the_path():
    """DeepSpeed's builds call `ninja`, which stands beside an interpreter that need not be
    activated."""
    variables = launcher_command(
        ["train"], LaunchFlags(), gpus=1, python=PYTHON, environ={"PATH": "/usr/bin"}
    )[1]
    assert variables == {"PATH": f"/env/bin{os.pathsep}/usr/bin"}


@pytest.mark.parametrize(
    ("count", "line"),
    [
        ("4097", "--num_gpus 4097: it must be at most 4096"),
        ("99999999999", "--num_gpus 99999999999: it must be"),
    ],
)
def test_more_ranks_than_can_be_counted_get_a_line_and_not_the_machines_memory(count, line):
    with pytest.raises(UserError, match=f"^{line}"):
        command(LaunchFlags(num_gpus=int(count)))


def test_a_fault_of_the_hostfile_names_the_variable_that_has_named_it(tmp_path):
    for text in (None, "", "a slots=x\n"):
        file = tmp_path / "none" if text is None else hostfile(tmp_path, text)
        flags, _ = split_words(["train"], {"HOSTFILE": str(file)})
        with pytest.raises(UserError, match=f"^HOSTFILE={file}"):
            command(flags)


@pytest.mark.process
@pytest.mark.slow
def test_the_command_starts_two_ranks_and_hands_back_their_exit_code(tmp_path):
    """By the real launcher: module found, words whole, ranks numbered, variables there. Runs that
    end well are in tests/dist/test_launch_path.py."""
    for package in ("yolods", "yolods/launch", "yolods/system"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    for module in (node_launcher, deepspeed_runner, supervisor, interrupt, compat, errors, folders):
        shutil.copy(module.__file__, tmp_path / f"{module.__name__.replace('.', '/')}.py")
    (tmp_path / "yolods" / "__main__.py").write_text(
        "import os, sys, time\n"
        "names = ('RANK', 'WORLD_SIZE', 'DS_ACCELERATOR', 'OMP_NUM_THREADS')\n"
        "print('|'.join(['here', *sys.argv[1:], *(os.environ[name] for name in names)]) + '\\n', "
        "end='', flush=True)\n"
        # A rank that fails takes its sibling down, which has to have spoken before.
        "open('spoke' + os.environ['RANK'], 'w').close()\n"
        "while not all(map(os.path.exists, ('spoke0', 'spoke1'))): time.sleep(0.01)\n"
        "sys.exit(7)\n"
    )
    words, variables = launcher_command(
        ["train", "--name", "a b"],
        LaunchFlags(),
        gpus=0,
        python=sys.executable,
        cores=2,
        environ={},
    )
    # The stand-in has to be found before an installed yolods: `-m` looks into the working directory
    # first.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    path = os.pathsep.join([variables["PATH"], os.environ["PATH"]])
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={**kept, **variables, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    seen = sorted(line for line in done.stdout.splitlines() if line.startswith("here"))
    expected = [f"here|train|--name|a b|{rank}|2|cpu|1" for rank in range(2)]
    assert seen == expected
    assert "Unable to find hostfile" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "unused"),
    [
        ({"launcher": "slurm", "ssh_port": 22}, ["--launcher slurm", "--ssh_port 22"]),
        (
            {"master_addr": "10.0.0.1", "launcher_args": "-x"},
            ["--launcher_args -x", "--master_addr 10.0.0.1"],
        ),
        ({"num_gpus": 2, "max_restarts": 1, "master_port": 29500}, []),
    ],
)
def test_flags_for_other_hosts_that_a_local_start_does_not_use_are_said(flags, unused):
    given = LaunchFlags(**flags)
    assert unused_flags(given, (Host("localhost", 2, (0, 1)),)) == unused
    assert unused_flags(given, (Host("a", 2, (0, 1)), Host("b", 2, (0, 1)))) == []
