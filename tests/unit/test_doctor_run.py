"""`yolods doctor` as a user starts it, on two hosts that a stand-in for ssh plays on this
machine."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolods.config import precheck_deepspeed
from yolods.data.spec import places, read_spec, spare_places
from yolods.doctor import run
from yolods.doctor.run import run_doctor
from yolods.errors import Faults, UserError
from yolods.hosts.env_forwarding import EXPORTED, travelling
from yolods.hosts.hostfile import Host
from yolods.hosts.remote import Answer, Caller
from yolods.launch.args import LaunchFlags

ROOT = Path(__file__).parents[2]

SSH = r"""#!/bin/bash
# Takes ssh's options, lets a file named after the host change what it likes, and runs the command here.
while [[ $1 == -* ]]; do shift 2; done
command=$2 edit=
echo "$1" >>"$HOSTS/asked"
[[ ! -e $HOSTS/$1 ]] || . "$HOSTS/$1"
cd / && set -o pipefail
bash -c "$command" | sed "$edit"
"""  # noqa: E501


class Cluster:
    """Two hosts, `a` and `b`, and a doctor for them."""

    def __init__(self, folder: Path, run_process: Callable) -> None:
        self.folder, self._run = folder, run_process
        self.bin, self.hosts, self.home = (folder / name for name in ("bin", "hosts", "home"))
        for made in (self.bin, self.hosts, self.home):
            made.mkdir()
        self.tool("ssh", SSH)
        self.tool("pdsh", "#!/bin/sh\n")
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("a slots=1\nb slots=1\n", encoding="utf-8")

    def tool(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text, encoding="utf-8")
        (self.bin / name).chmod(0o755)

    def host(self, name: str, text: str) -> None:
        """What differs on a host; `edit` is a sed script over its report, `command` what it was
        asked to run."""
        (self.hosts / name).write_text(text, encoding="utf-8")

    def doctor(
        self, *words: object, port: int, hostfile: bool = True, path: str = ""
    ) -> tuple[int, list[str]]:
        flags = ["--hostfile", self.hostfile] if hostfile else []
        env = {
            "PATH": path or f"{self.bin}:{os.environ['PATH']}",
            "HOSTS": str(self.hosts),
            "HOME": str(self.home),
            "TORCH_EXTENSIONS_DIR": str(self.folder / "extensions"),
        }
        argv = [
            sys.executable,
            "-m",
            "yolods",
            "launch",
            "doctor",
            *flags,
            "--master_port",
            port,
            *words,
        ]
        done = self._run(argv, cwd=ROOT, env=env, timeout=60)
        assert "Traceback" not in done.stderr
        return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]


@pytest.fixture
def cluster(tmp_path, run_process, monkeypatch) -> Cluster:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return Cluster(tmp_path, run_process)


@pytest.fixture
def data(tmp_path) -> Path:
    for seed, split in enumerate(("train", "val")):
        images, labels = (tmp_path / "data" / kind / split for kind in ("images", "labels"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        (labels / "1.txt").write_text("0 .5 .5 .1 .1", encoding="utf-8")
        noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
        cv2.imwrite(str(images / "1.jpg"), cv2.resize(noise, (64, 48)))
    file = tmp_path / "data.yaml"
    file.write_text(
        f"path: {tmp_path / 'data'}\ntrain: images/train\nval: images/val\nnames: [x]\n",
        encoding="utf-8",
    )
    return file


SAME = "warning: b: the same machine as a; give it one line in the hostfile with all its slots"


def test_a_healthy_set_up(cluster, data, free_port):
    began = time.monotonic()
    code, lines = cluster.doctor("--data", data, port=free_port())
    assert time.monotonic() - began < 15
    assert (code, lines[-2:]) == (0, [SAME, "This run would start (1 warning)."])
    assert sorted((cluster.hosts / "asked").read_text().split()) == [
        "a",
        "b",
    ]  # this machine too: pdsh will do so
    assert lines[0].startswith("2 hosts, 2 ranks, meeting at ")
    assert [line.split()[0] for line in lines[2:5]] == ["host", "a", "b"]
    assert sum("  5 files, " in line for line in lines) == 2 and not any(
        "!" in line for line in lines
    )


PLANTED = {
    "another version": (
        "mkdir -p $HOSTS/site/torch-2.6.0.dist-info; printf 'Name: torch\\nVersion: 2.6.0\\n' "
        '>$HOSTS/site/torch-2.6.0.dist-info/METADATA; export PYTHONPATH="$HOSTS/site"',
        "fault: b: torch 2.6.0, but a has ",
    ),
    "unreachable": (
        "echo 'ssh: connect to host b port 22: Connection refused' >&2; exit 255",
        "fault: b: cannot reach it with ssh: ssh: connect to host b port 22: Connection refused; "
        "start sshd there",
    ),
    "a password asked for": (
        "echo 'me@b: Permission denied (publickey,password).' >&2; exit 255",
        "fault: b: cannot reach it with ssh: me@b: Permission denied (publickey,password).; allow "
        "login without a ",
    ),
    "no such Python": (
        "command=${command/test -x /test -x /nowhere}",
        f"fault: b: it has no {sys.executable}; create the same environment there",
    ),
    "a broken Python": (
        "command='echo ImportError: no ctypes >&2; exit 1'",
        f"fault: b: {sys.executable} fails there: ImportError: no ctypes",
    ),
    "a stale lock": (
        """edit='s|"locks": ..|"locks": [{"path": "/ext/lock", "age": 7200, "held": false}]|'""",
        "warning: b: a build that was killed 2 hours ago left /ext/lock; this run builds nothing "
        "there",
    ),
    "missing data": (
        """edit='s/"present": true/"present": false/'""",
        " is missing or unreadable; copy it: rsync -a a:/",
    ),
    "data of another size": (
        """edit='s/"bytes": [0-9]*/"bytes": 3/'""",
        " has 1 file, 3 B, but on a 1 file, ",
    ),
    "clocks apart": ("""edit='s/"time": 1/"time": 2/'""", "fault: b: its clock is "),
    "chatter of a login script": ("echo welcome to b", SAME),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_on_a_host_is_found(cluster, data, free_port, name):
    planted, expected = PLANTED[name]
    cluster.host("b", planted)
    code, lines = cluster.doctor("--data", data, port=free_port())
    found = [line for line in lines if expected in line and " b: " in line]
    assert len(found) == 1, lines
    works = expected == SAME or expected.startswith("warning")
    assert code == (0 if works else 2)
    assert lines[-1].startswith("This run would start" if works else "This run would fail")


def test_images_of_two_splits_and_data_that_no_run_can_use_are_said(cluster, data, free_port):
    folder = data.with_suffix("")
    shutil.copy(folder / "images/train/1.jpg", folder / "images/val/1.jpg")
    code, lines = cluster.doctor("--data", data, port=free_port(), hostfile=False)
    (leak,) = [line for line in lines if "nearly repeat train images" in line]
    assert code == 0 and leak.startswith("warning: val: 1 of 1 image (100.0%)")
    (folder / "images/train/1.jpg").write_text("no image")
    code, lines = cluster.doctor("--data", data, port=free_port(), hostfile=False)
    assert code == 2 and "fault: train: none of 1 images can be used" in "\n".join(lines)


def test_a_folder_that_a_host_lacks(cluster, free_port):
    cluster.host("b", 'command="cd /nowhere ||${command#*||}"')
    code, lines = cluster.doctor(port=free_port())
    assert code == 2
    assert (
        f"fault: b: it has no folder {ROOT}; create it there, or start in a folder that all hosts "
        "have"
    ) in lines


@pytest.mark.slow
def test_a_host_that_does_not_answer(cluster, free_port):
    cluster.host("b", "exec sleep 100")
    began = time.monotonic()
    code, lines = cluster.doctor(port=free_port())
    assert time.monotonic() - began < 20  # of which 12 are the time-out
    assert code == 2 and "fault: b: no answer within 12 s; try by hand: ssh b true" in lines
    assert lines[3].startswith("a ") and "1 on" in lines[3]  # a is shown all the same


def test_a_port_that_is_taken(cluster, free_port):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, lines = cluster.doctor(port=port)
    assert code == 2
    assert any(
        line.startswith(f"fault: a: port {port} is not usable: Address already in use")
        for line in lines
    )


def test_gpus_against_slots_and_what_a_build_needs(cluster, free_port):
    """Two GPUs a host as a stand-in for nvidia-smi lists them; b is another machine, without ninja
    or nvcc."""
    cluster.tool("nvidia-smi", "#!/bin/sh\nprintf '0, 80000, 81559\\n1, 700, 81559\\n'\n")
    cluster.hostfile.write_text("a slots=1\nb slots=4\n", encoding="utf-8")
    cluster.host(
        "b",
        r"""edit='s/"machine": "/&other /; s/"addresses": .*"own_a/"addresses": """
        r"""[["eth0", "192.0.2.77\/8"]], "routes": [["eth0", "0.0.0.0\/0"]], "own_a/; """
        r"""s/"ninja\(_beside\)\?": "[^"]*"/"ninja\1": null/g; s/"nvcc": "[^"]*"/"nvcc": null/; """
        r"""s/+cpu//'""",
    )
    words = ["--deepspeed_config", ROOT / "ds_configs" / "zero2_offload_fp32.json"]
    code, lines = cluster.doctor(*words, port=free_port())
    said = "\n".join(lines)
    assert code == 2
    assert "fault: b: slots=4, but it has 2 GPUs; write slots=2 in the hostfile" in lines
    assert "fault: b: GPU 1 has 0.7 of 79.6 GiB free; end what runs there" in said
    assert (
        "warning: a: slots=1, but it has 2 GPUs: the rest are idle; write slots=2 for all" in lines
    )
    assert "fault: b: no ninja, but the configuration needs DeepSpeed's CPUAdam compiled" in said
    assert "no nvcc" not in said  # which CPUAdam does without
    code, lines = cluster.doctor("--include", "b:0", port=free_port())
    assert "1 host, 1 rank, " in lines[0] and not any(
        "slots=4" in line or "ninja" in line for line in lines[5:]
    )


def test_without_pdsh(cluster, free_port):
    (cluster.bin / "pdsh").unlink()
    for tool in ("bash", "sed", "env", "hostname"):
        (cluster.bin / tool).symlink_to(shutil.which(tool))
    code, lines = cluster.doctor(port=free_port(), path=str(cluster.bin))
    assert (
        code == 2
        and "fault: no pdsh here, which starts ranks on the other hosts; apt-get install pdsh"
        in lines
    )


def test_this_machine_alone_needs_no_ssh(cluster, free_port):
    code, lines = cluster.doctor(port=free_port(), hostfile=False)
    assert (code, lines[-1]) == (0, "This run would start.")
    assert lines[0].startswith("1 host, ") and " meeting at 127.0.0.1, port " in lines[0]
    cluster.hostfile.write_text("localhost slots=1\n", encoding="utf-8")
    assert cluster.doctor(port=free_port())[0] == 0
    assert not (cluster.hosts / "asked").exists()


def test_bad_files_are_told_with_everything_else(cluster, tmp_path, free_port):
    (tmp_path / "bad.yaml").write_text("train: nowhere\nnames: [x]\n", encoding="utf-8")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (cluster.home / ".deepspeed_env").write_text(
        "A=1\n\nGLOO_SOCKET_IFNAME=none0\n", encoding="utf-8"
    )
    words = ["--data", tmp_path / "bad.yaml", "--deepspeed_config", tmp_path / "bad.json"]
    code, lines = cluster.doctor(*words, port=free_port())
    starts = [
        f"fault: --deepspeed_config {tmp_path / 'bad.json'}: line 1",
        f"fault: {tmp_path / 'bad.yaml'}: val: missing",
    ]
    starts += [f"fault: {cluster.home / '.deepspeed_env'} line 2: ``: write NAME=value"]
    starts += [
        f"fault: {host}: GLOO_SOCKET_IFNAME=none0 does not fit its interfaces" for host in "ab"
    ]
    assert code == 2
    assert all(any(line.startswith(start) for line in lines) for start in starts), lines


def test_every_bad_line_of_a_hostfile_at_once(cluster, free_port):
    cluster.hostfile.write_text("a\nb slots=x\n", encoding="utf-8")
    code, lines = cluster.doctor(port=free_port())
    assert code == 2
    assert [line.partition(" line ")[2][:2] for line in lines] == ["1:", "2:"]


LOCAL = (Host("localhost", 2, (0, 1)),)
FAR = (Host("a", 1, (0,)), Host("b", 1, (0,)))


@pytest.fixture
def asked(monkeypatch) -> list:
    """What hosts are asked, of which none answers."""
    calls: list = []

    def ask(hosts, request, caller, *, local):
        calls.append((request, caller, local))
        return [Answer(host, None, "no route") for host in hosts]

    monkeypatch.setattr(run, "ask", ask)
    monkeypatch.setattr(run, "check_threads", lambda environ: None)
    return calls


def test_hosts_that_cannot_be_asked_are_not(asked):
    with pytest.raises(
        UserError,
        match=r"^doctor asks the hosts through ssh, which --no_ssh excludes; run it on each host "
        "without --hostfile and --no_ssh$",
    ):
        run_doctor(FAR, LaunchFlags(no_ssh=True))
    assert asked == []


def test_over_hosts_they_are_asked_by_ssh_where_ranks_will_meet(asked, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    flags = LaunchFlags(master_addr="10.0.0.1", ssh_port=2222)
    lines, fine = run_doctor(
        FAR, flags, trees=["/data"], lists=["/data/val.txt"], ignored=[".cache"]
    )
    ((request, caller, local),) = asked
    assert (request.master_addr, request.master_port, local) == ("10.0.0.1", 29500, False)
    assert (request.trees, request.lists, request.ignored) == (
        ("/data",),
        ("/data/val.txt",),
        (".cache",),
    )
    assert caller == Caller(Path.cwd(), sys.executable, caller.variables, 2222)
    assert caller.variables["NCCL_DEBUG"] == "INFO"
    assert not fine and sum(line.endswith("no route") for line in lines) == 2


def test_a_start_on_this_machine_alone_sets_nothing_and_takes_any_port(asked):
    run_doctor(LOCAL, LaunchFlags(master_port=1234))
    run_doctor(LOCAL, LaunchFlags())
    for port, (request, caller, local) in zip((1234, None), asked, strict=True):
        assert (request.master_addr, request.master_port, local) == (None, port, True)
        assert caller.variables == {}


def test_what_was_found_before_is_told_first_and_what_the_environment_lacks_with_it(
    asked, monkeypatch
):
    def refuse(environ):
        raise UserError("OMP_NUM_THREADS=x: it has to be a number")

    monkeypatch.setattr(run, "check_threads", refuse)
    faults = Faults()
    faults.add("d.yaml: no such file")
    lines, fine = run_doctor(LOCAL, LaunchFlags(), faults=faults)
    first = [line for line in lines if line.startswith("fault: ")][:2]
    assert first == [
        "fault: d.yaml: no such file",
        "fault: OMP_NUM_THREADS=x: it has to be a number",
    ]
    assert not fine


def test_what_travels_to_other_hosts(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder, text in ((home, "A=1\nB=home\n"), (here, "B=here\nnonsense\n")):
        folder.mkdir()
        (folder / "envfile").write_text(text, encoding="utf-8")
    faults = Faults()
    environ = {
        "PYTHONHASHSEED": "1",
        "NCCL_DEBUG": "INFO",
        "PATH": "/bin",
        "DS_ENV_FILE": "envfile",
    }
    found = travelling(environ, (home, here), faults)
    assert found == {"PYTHONHASHSEED": "1", "NCCL_DEBUG": "INFO", "A": "1", "B": "here"}
    assert len(faults) == 1 and f"{here / 'envfile'} line 2: `nonsense`" in str(next(iter(faults)))


def test_deepspeed_hands_on_the_same_variables():
    from deepspeed.accelerator import cuda_accelerator
    from deepspeed.launcher import runner

    theirs = [*runner.EXPORT_ENVS, *cuda_accelerator.CUDA_Accelerator().export_envs()]
    assert sorted(EXPORTED) == sorted(theirs)


def test_where_data_lies(data, tmp_path):
    folder = tmp_path / "data"
    trees, lists = places(read_spec(data))
    assert set(trees) == {
        str(data),
        *(str(folder / k / s) for k in ("images", "labels") for s in ("train", "val")),
    }
    assert lists == ()
    (tmp_path / "val.txt").write_text("./data/images/val/1.jpg\n", encoding="utf-8")
    data.write_text(
        f"path: {tmp_path}\ntrain: data/images/train\nval: val.txt\nnames: [x]\n", encoding="utf-8"
    )
    assert places(read_spec(data))[1] == (str(tmp_path / "val.txt"),)


def test_what_only_the_test_split_needs(data, tmp_path):
    """A yaml may name a test folder that was never fetched, as COCO's does."""
    assert spare_places(read_spec(data)) == frozenset()
    text = data.read_text(encoding="utf-8")
    data.write_text(f"{text}\ntest: images/absent\n", encoding="utf-8")
    spec = read_spec(data)
    assert spare_places(spec) == {str(source) for source in spec.test}
    data.write_text(f"{text}\ntest: images/val\n", encoding="utf-8")
    assert spare_places(read_spec(data)) == frozenset()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("zero2_offload_fp32", True), ("zero3_offload_fp16", True), ("zero3_bf16", False)],
)
def test_what_has_to_be_compiled(name, expected):
    faults = Faults()
    file = ROOT / "ds_configs" / f"{name}.json"
    assert precheck_deepspeed(file, world_size=2, device="cuda", faults=faults) == expected
    assert not faults
