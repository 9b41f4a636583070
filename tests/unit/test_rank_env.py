"""What a rank works out for itself, by its variables and this machine's own addresses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from yolods.distributed import rank_env
from yolods.distributed.rank_env import (
    LaunchedRank,
    check_interfaces,
    check_packages,
    check_threads,
    complete_environment,
    cpu_threads,
    forget_empty,
    forget_ranks,
    is_here,
    is_loopback,
    own_address_toward,
    read_launched_rank,
)
from yolods.errors import OwnError, UserError

MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
RANKS = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MEETING}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}


@pytest.fixture
def network(monkeypatch) -> None:
    """Two interfaces, of which the second leads to 10.0.0.1."""
    monkeypatch.setattr(
        rank_env,
        "addresses",
        lambda: [("lo", "127.0.0.1/8"), ("eth0", "10.9.0.2/8"), ("ib1", "10.0.0.2/24")],
    )
    monkeypatch.setattr(
        rank_env,
        "own_address_toward",
        {"10.0.0.1": "10.0.0.2", "a": "127.0.1.1", "127.0.0.1": "127.0.0.1"}.get,
    )


def test_the_interface_to_the_master(network):
    found = {"MASTER_ADDR": "10.0.0.1"}
    complete_environment(found)
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("ib1", "=ib1")


def test_what_is_set_is_left_alone(network):
    found = {
        "MASTER_ADDR": "10.0.0.1",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_SOCKET_IFNAME": "eth",
        **MPI,
        "RANK": "0",
    }
    before = dict(found)
    complete_environment(found)
    assert {name: found[name] for name in before} == before


@pytest.mark.parametrize("master", ["127.0.0.1", "unknown"])
def test_ranks_of_one_host_need_no_interface(network, master):
    found = {"MASTER_ADDR": master, "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    complete_environment(found)
    assert "GLOO_SOCKET_IFNAME" not in found


def test_a_master_that_other_hosts_cannot_hear(network):
    with pytest.raises(
        UserError, match=r"the master address a leads to 127\.0\.1\.1 on .* with --master_addr"
    ):
        complete_environment({"MASTER_ADDR": "a", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"})


@pytest.mark.parametrize("variables", [MPI, SLURM, MPICH])
def test_who_a_rank_is_under_mpirun_and_srun(network, variables):
    found = {**variables, "MASTER_ADDR": "10.0.0.1"}
    complete_environment(found)
    assert [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")] == [
        "5",
        "8",
        "1",
        "29500",
    ]
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        complete_environment(dict(variables))


def test_a_script_of_sbatch_is_not_a_task_of_srun(network):
    found = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}
    complete_environment(found)
    assert "RANK" not in found


def test_the_tools_beside_this_python():
    beside = str(Path(sys.executable).parent)
    for path, expected in (
        ("/bin", f"{beside}{os.pathsep}/bin"),
        ("", beside),
        (f"/x:{beside}", f"/x:{beside}"),
    ):
        found = {"PATH": path}
        complete_environment(found)
        assert found["PATH"] == expected


def test_ranks_of_a_host_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cpu_threads({"LOCAL_SIZE": "3"}) == 2
    assert cpu_threads({"LOCAL_SIZE": "20"}) == 1
    assert cpu_threads({"LOCAL_SIZE": "2", "OMP_NUM_THREADS": "7"}) is None
    assert cpu_threads({}) is None


def test_this_machine():
    assert is_here("127.0.0.1") and not is_here("192.0.2.1") and not is_here("a.invalid")
    assert (
        own_address_toward("127.0.0.1") == "127.0.0.1" and own_address_toward("a.invalid") is None
    )
    assert is_loopback("127.0.1.1") and is_loopback("::1") and not is_loopback("fe80::1%eth0")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, LaunchedRank()),
        (
            {"RANK": "", "WORLD_SIZE": "", "MASTER_ADDR": "left.over", "LOCAL_SIZE": "8"},
            LaunchedRank(),
        ),
        ({**RANKS, "LOCAL_SIZE": "4"}, LaunchedRank(5, 8, 1, 4, launched=True)),  # DeepSpeed's
        ({**RANKS, "LOCAL_WORLD_SIZE": "4"}, LaunchedRank(5, 8, 1, 4, launched=True)),  # torchrun's
        (RANKS, LaunchedRank(5, 8, 1, None, launched=True)),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            LaunchedRank(0, 1, 0, 1, launched=True),
        ),
        (MPI, LaunchedRank(5, 8, 1, None, launched=True, task=True)),
        (
            {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            LaunchedRank(5, 8, 1, 4, launched=True, task=True),
        ),
        (SLURM, LaunchedRank(5, 8, 1, None, launched=True, task=True)),
        (MPICH, LaunchedRank(5, 8, 1, 4, launched=True, task=True)),
        (
            {**SLURM, **RANKS},
            LaunchedRank(5, 8, 1, None, launched=True, task=True),
        ),  # a script of the user's own
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "2", **RANKS},
            LaunchedRank(5, 8, 1, None, launched=True),
        ),  # a torchrun a host
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, LaunchedRank()),
        # Of two launchers' words on the ranks of this host, those of the launcher that has started
        # this one.
        (
            {
                **RANKS,
                "LOCAL_SIZE": "4",
                "CROSS_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "TORCHELASTIC_RUN_ID": "x",
            },
            LaunchedRank(5, 8, 1, 4, launched=True),
        ),
        (
            {**RANKS, "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"},
            LaunchedRank(5, 8, 1, 4, launched=True),
        ),
        # A shell that `mpirun -np 1 bash` has started, and ranks that DeepSpeed's launcher has
        # started in it.
        (
            {**dict.fromkeys(MPI, "0"), "OMPI_COMM_WORLD_SIZE": "1"},
            LaunchedRank(0, 1, 0, 1, launched=True, task=True),
        ),
        (
            {**dict.fromkeys(MPI, "0"), "OMPI_COMM_WORLD_SIZE": "1", **RANKS, "LOCAL_SIZE": "4"},
            LaunchedRank(5, 8, 1, 4, launched=True),
        ),
    ],
)
def test_which_rank_a_process_is_by_its_environment(environ, expected):
    assert read_launched_rank(environ) == expected


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"RANK": "1"},
            "RANK=1 without WORLD_SIZE and LOCAL_RANK, which every launcher sets as well.*unset "
            "RANK$",
        ),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 without RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "without LOCAL_RANK, .*: unset RANK WORLD_SIZE$"),
        ({"RANK": "abc"}, "RANK=abc is not a whole number"),
        ({**RANKS, "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 is not a whole number"),
        ({**RANKS, "RANK": "8"}, "RANK=8 and WORLD_SIZE=8: ranks are counted from 0"),
        ({**RANKS, "WORLD_SIZE": "0"}, "RANK=5 and WORLD_SIZE=0: ranks are counted from 0"),
        (
            {**RANKS, "LOCAL_SIZE": "1"},
            "LOCAL_RANK=1 and LOCAL_SIZE=1: ranks of a host are counted from 0",
        ),
        (
            {**RANKS, "LOCAL_SIZE": "16"},
            "WORLD_SIZE=8 and LOCAL_SIZE=16: more ranks on this host than in total",
        ),
        (
            {**RANKS, "LOCAL_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "LOCAL_SIZE=4 and LOCAL_WORLD_SIZE=2, one of which",
        ),
        ({**RANKS, "MASTER_ADDR": ""}, "without MASTER_ADDR, where ranks would meet"),
        ({**RANKS, "MASTER_PORT": "http"}, "MASTER_PORT=http: a port is a number from 1 to 65535"),
        (
            {**RANKS, **MPI, "OMPI_COMM_WORLD_SIZE": "16"},
            "WORLD_SIZE=8, but OMPI_COMM_WORLD_SIZE=16",
        ),
        ({**MPI, "OMPI_COMM_WORLD_RANK": "x"}, "OMPI_COMM_WORLD_RANK=x is not a whole number"),
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, "without MPI_LOCALRANKID"),
    ],
)
def test_what_no_launcher_would_set_is_left_over_and_gets_one_line(environ, line):
    with pytest.raises(OwnError, match=line) as fault:
        read_launched_rank(environ)
    assert "\n" not in str(fault.value) and "If no launcher started this process: unset " in str(
        fault.value
    )


def test_a_launcher_does_not_hand_on_whose_rank_it_is_itself():
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}
    settings = {
        "OMPI_MCA_btl": "tcp",
        "PMIX_MCA_gds": "hash",
        "NCCL_DEBUG": "INFO",
        "GLOO_SOCKET_IFNAME": "eth0",
        **slurm,
    }
    torchrun = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "x",
        "GROUP_RANK": "0",
        "ROLE_RANK": "1",
    }
    more = {
        "LOCAL_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "CROSS_SIZE": "2",
        "PMIX_RANK": "0",
        "PMI_FD": "3",
    }
    environ = {**RANKS, **MPI, **MPICH, **SLURM, **torchrun, **more, **settings}
    told = forget_ranks(environ)
    assert environ == settings
    assert told == [
        "OMPI_COMM_WORLD_SIZE=8",
        "PMI_SIZE=8",
        "RANK=5",
        "SLURM_STEP_NUM_TASKS=8",
        "WORLD_SIZE=8",
    ]


def test_what_says_that_a_process_is_alone_is_taken_away_without_a_word():
    assert (
        forget_ranks(
            {"RANK": "0", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "1", "MASTER_ADDR": "a"}
        )
        == []
    )


@pytest.mark.parametrize("given", ["abc", "0", "-1", "1.5", "4,x", "99999999", "²", "4,"])
def test_a_number_of_threads_that_is_none(given):
    with pytest.raises(
        OwnError, match=f"OMP_NUM_THREADS={given}: it must be a whole number from 1 to"
    ):
        check_threads({"OMP_NUM_THREADS": given})


@pytest.mark.parametrize("given", ["", " 4 ", "4,2"])
def test_a_number_of_threads(given):
    check_threads({"OMP_NUM_THREADS": given})
    check_threads({})


@pytest.mark.parametrize(
    ("variables", "gpus", "fault"),
    [
        ({}, True, None),
        ({"GLOO_SOCKET_IFNAME": "eth0"}, True, None),
        (
            {"GLOO_SOCKET_IFNAME": "eth7"},
            False,
            "GLOO_SOCKET_IFNAME=eth7 does not fit the interfaces of .*lo, eth0, ib1",
        ),
        ({"GLOO_SOCKET_IFNAME": "eth0,eth7"}, False, "GLOO_SOCKET_IFNAME=eth0,eth7"),
        ({"NCCL_SOCKET_IFNAME": "bond"}, False, None),
        ({"NCCL_SOCKET_IFNAME": "bond"}, True, "NCCL_SOCKET_IFNAME=bond does not fit"),
        ({"NCCL_SOCKET_IFNAME": "eth"}, True, None),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, True, None),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, True, "NCCL_SOCKET_IFNAME==eth"),
    ],
)
def test_an_interface_that_is_not_there(network, variables, gpus, fault):
    if fault is None:
        check_interfaces(variables, gpus=gpus)
        return
    with pytest.raises(OwnError, match=fault):
        check_interfaces(variables, gpus=gpus)


def test_packages_of_another_python_are_not_imported_in_place_of_ours(tmp_path):
    other = tmp_path / "lib" / "python3.7" / "site-packages"
    for folder in (tmp_path / "own", other):
        (folder / "numpy").mkdir(parents=True)
        (folder / "numpy" / "__init__.py").touch()
        with pytest.raises(
            OwnError,
            match=f"PYTHONPATH=.* puts {folder}/numpy/__init__.py before the installed numpy",
        ):
            check_packages({"PYTHONPATH": f"/nowhere{os.pathsep}{folder}"})
    check_packages({"PYTHONPATH": str(tmp_path)})
    check_packages({})


def test_an_empty_value_is_no_choice():
    environ = {
        "GLOO_SOCKET_IFNAME": "",
        "NCCL_SOCKET_IFNAME": "ib",
        "DS_ACCELERATOR": "",
        "CUDA_VISIBLE_DEVICES": "",
    }
    forget_empty(environ)
    assert environ == {"NCCL_SOCKET_IFNAME": "ib", "CUDA_VISIBLE_DEVICES": ""}
