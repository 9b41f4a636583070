"""The ready files in hostfiles/, as far as a machine without Slurm and Kubernetes can try them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from yolods.commands.parsers import train_parser
from yolods.hosts.hostfile import parse_hostfile
from yolods.launch.args import LaunchFlags, split_words
from yolods.launch.command import launcher_command

RECIPES = Path(__file__).resolve().parents[2] / "hostfiles"
TRAIN = ["--data", "coco.yaml", "--epochs", "3"]

LAUNCH = """#!/bin/bash
printf '%s\\n' "$@" >words; cat "$3" >hosts
if [[ -n ${STAYS:-} ]]; then
    trap 'sleep 0.3; echo saved >saved; exit 143' TERM
    touch ready
    while :; do sleep 0.05; done
fi
exit "${STATUS:-0}"
"""


def parsed(words: list[str]) -> LaunchFlags:
    """The launcher's flags; what is left has to be `train` and flags that it knows."""
    flags, (word, *rest) = split_words(words, {})
    assert word == "train"
    train_parser().parse_args(rest)
    return flags


class Job:
    """A folder in which sbatch's script runs, with stand-ins for Slurm and for launch.sh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path, text in (
            ("launch.sh", LAUNCH),
            ("bin/scontrol", "#!/bin/sh\nprintf 'n1\\nn2\\n'\n"),
        ):
            file = folder / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            file.chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        slurm = {
            "SLURM_SUBMIT_DIR": ".",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_GPUS_ON_NODE": "4",
        }
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", RECIPES / "slurm.sbatch", *TRAIN],
            cwd=self.folder,
            env={**slurm, "PATH": path, "TMPDIR": str(self.folder), "RUN": "x", **variables},
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(tmp_path)


def test_a_job_of_slurm(job):
    for resumed in (False, True):
        process = job.start()
        assert process.wait(20) == 0, process.stderr.read()
        process.stderr.close()
        words = (job.folder / "words").read_text().splitlines()
        flags = parsed(words)
        assert (flags.launcher, flags.hostfile) == ("slurm", job.folder / "yolods-hosts.7")
        assert (job.folder / "hosts").read_text() == "n1 slots=4\nn2 slots=4\n"
        more = ["--resume", "runs/x"] if resumed else ["--name", "x", "--exist-ok"]
        assert words[-len(TRAIN) - len(more) :] == [*TRAIN, *more]
        assert not flags.hostfile.exists()
        (job.folder / "runs" / "x" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (job.folder / "runs" / "x" / "checkpoints" / "latest").touch()


def test_a_job_ends_as_its_run_does_and_wants_a_name(job):
    process = job.start(STATUS="3")
    assert process.wait(20) == 3
    process.stderr.close()
    process = job.start(RUN="")
    assert process.wait(20) != 0 and "name the run: RUN=x1280 sbatch" in process.stderr.read()
    process.stderr.close()


def test_slurms_warning_reaches_the_run_which_has_time_to_save(job):
    process = job.start(STAYS="1")
    deadline = time.monotonic() + 20
    while not (job.folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    process.stderr.close()
    assert (job.folder / "saved").exists()


def test_a_job_of_kubernetes(tmp_path, monkeypatch):
    service, settings, job = yaml.safe_load_all(
        (RECIPES / "kubernetes.yaml").read_text(encoding="utf-8")
    )
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(settings["data"]["hostfile"], encoding="utf-8")
    hosts = parse_hostfile(hostfile)
    named = [
        f"{job['metadata']['name']}-{index}.{service['metadata']['name']}"
        for index in range(len(hosts))
    ]
    assert [host.name for host in hosts] == named and pod["subdomain"] == service["metadata"][
        "name"
    ]
    assert (
        spec["completions"] == spec["parallelism"] == len(hosts)
        and spec["completionMode"] == "Indexed"
    )
    assert {host.slots for host in hosts} == {container["resources"]["limits"]["nvidia.com/gpu"]}
    assert {each["name"] for each in container["volumeMounts"]} <= {
        each["name"] for each in pod["volumes"]
    }
    assert pod["terminationGracePeriodSeconds"] >= 60
    (script,) = container["args"]
    shown = subprocess.run(
        ["bash", "-c", script.replace("exec ./launch.sh", "printf '%s\\n'")],
        cwd=tmp_path,
        env={"JOB_COMPLETION_INDEX": "1", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    words = [
        str(hostfile) if word == "/etc/yolods/hostfile" else word
        for word in shown.stdout.splitlines()
    ]
    flags = parsed(words)
    assert (flags.node_rank, flags.master_addr) == (1, named[0])
    command, _ = launcher_command(words, flags, gpus=8, python="/p", environ={"PATH": "/bin"})
    assert "--no_ssh --node_rank 1" in shlex.join(command)
