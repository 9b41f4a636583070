"""What a rank works out for itself, by its variables and this machine's own addresses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from yolods.cluster import place
from yolods.cluster.place import cpu_threads, is_here, is_loopback, own_address_toward, settle
from yolods.errors import UserError

MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}


@pytest.fixture
def network(monkeypatch) -> None:
    """Two interfaces, of which the second leads to 10.0.0.1."""
    monkeypatch.setattr(
        place, "addresses", lambda: [("lo", "127.0.0.1/8"), ("eth0", "10.9.0.2/8"), ("ib1", "10.0.0.2/24")]
    )
    monkeypatch.setattr(
        place, "own_address_toward", {"10.0.0.1": "10.0.0.2", "a": "127.0.1.1", "127.0.0.1": "127.0.0.1"}.get
    )


def test_the_interface_to_the_master(network):
    found = {"MASTER_ADDR": "10.0.0.1"}
    settle(found)
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("ib1", "=ib1")


def test_what_is_set_is_left_alone(network):
    found = {"MASTER_ADDR": "10.0.0.1", "GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth", **MPI, "RANK": "0"}
    before = dict(found)
    settle(found)
    assert {name: found[name] for name in before} == before


@pytest.mark.parametrize("master", ["127.0.0.1", "unknown"])
def test_ranks_of_one_host_need_no_interface(network, master):
    found = {"MASTER_ADDR": master, "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    settle(found)
    assert "GLOO_SOCKET_IFNAME" not in found


def test_a_master_that_other_hosts_cannot_hear(network):
    with pytest.raises(UserError, match=r"the master address a leads to 127\.0\.1\.1 on .*: --master_addr"):
        settle({"MASTER_ADDR": "a", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"})


@pytest.mark.parametrize("variables", [MPI, SLURM])
def test_who_a_rank_is_under_mpirun_and_srun(network, variables):
    found = {**variables, "MASTER_ADDR": "10.0.0.1"}
    settle(found)
    assert [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")] == ["5", "8", "1", "29500"]
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        settle(dict(variables))


def test_a_script_of_sbatch_is_not_a_task_of_srun(network):
    found = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}
    settle(found)
    assert "RANK" not in found


def test_the_tools_beside_this_python():
    beside = str(Path(sys.executable).parent)
    for path, expected in (("/bin", f"{beside}{os.pathsep}/bin"), ("", beside), (f"/x:{beside}", f"/x:{beside}")):
        found = {"PATH": path}
        settle(found)
        assert found["PATH"] == expected


def test_ranks_of_a_host_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cpu_threads({"LOCAL_SIZE": "3"}) == 2
    assert cpu_threads({"LOCAL_SIZE": "20"}) == 1
    assert cpu_threads({"LOCAL_SIZE": "2", "OMP_NUM_THREADS": "7"}) is None
    assert cpu_threads({}) is None


def test_this_machine():
    assert is_here("127.0.0.1") and not is_here("192.0.2.1") and not is_here("a.invalid")
    assert own_address_toward("127.0.0.1") == "127.0.0.1" and own_address_toward("a.invalid") is None
    assert is_loopback("127.0.1.1") and is_loopback("::1") and not is_loopback("fe80::1%eth0")
