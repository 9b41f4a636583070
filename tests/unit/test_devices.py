"""Which GPUs a start takes, by variables and a given number of GPUs; no GPU is needed."""

from __future__ import annotations

import pytest

from yolods.errors import OwnError
from yolods.hosts.devices import NAMED, count_gpus, device_index, put_back, visible

UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1d07-e"


def present(count: int):
    return lambda: count


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, None),
        *((nothing, ()) for nothing in ("", " ", "-1", "NoDevFiles", ",", "-1,")),
        ("0,1", ("0", "1")),
        ("2,3,", ("2", "3")),
        (" 1 , 0 ", ("1", "0")),
        ("03", ("3",)),
        (UUIDS, tuple(UUIDS.split(","))),
        ("MIG-GPU-8932/1/0", ("MIG-GPU-8932/1/0",)),
    ],
)
def test_every_spelling_of_visible_devices(given, names):
    assert visible({} if given is None else {"CUDA_VISIBLE_DEVICES": given}) == names


@pytest.mark.parametrize(
    "given", ["0,,1", "0,-1", "0,GPU-1", "all", "0;1", "GPU-1,MIG-2", "0,0", "GPU-1,GPU-1", "²"]
)
def test_a_list_of_which_cuda_reads_a_part_is_refused(given):
    with pytest.raises(OwnError, match=f"CUDA_VISIBLE_DEVICES={given}"):
        visible({"CUDA_VISIBLE_DEVICES": given})


def test_two_parts_of_gpus_are_refused_because_a_process_is_shown_one():
    with pytest.raises(OwnError, match=r"only one part .* of a GPU; name one"):
        visible({"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"})


@pytest.mark.parametrize(
    ("variables", "there", "used"),
    [
        ({}, 4, 4),
        ({}, 0, 0),
        ({"DS_ACCELERATOR": ""}, 2, 2),
        ({"DS_ACCELERATOR": "cuda"}, 2, 2),
        ({"DS_ACCELERATOR": "cpu"}, 4, 0),
        ({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"}, 2, 0),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2, 2),
        ({"CUDA_VISIBLE_DEVICES": UUIDS}, 2, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 4, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 4, 0),
    ],
)
def test_gpus_that_are_used(variables, there, used):
    assert count_gpus(variables, present(there)) == used


@pytest.mark.parametrize(
    ("variables", "there", "line"),
    [
        ({"CUDA_VISIBLE_DEVICES": "7"}, 0, "CUDA_VISIBLE_DEVICES=7: no such GPU exists"),
        ({"CUDA_VISIBLE_DEVICES": "0,7"}, 1, "CUDA_VISIBLE_DEVICES=0,7: of 2 GPUs CUDA shows 1"),
        ({"CUDA_VISIBLE_DEVICES": UUIDS}, 0, f"CUDA_VISIBLE_DEVICES={UUIDS}: no such GPU exists"),
        ({"DS_ACCELERATOR": "cuda"}, 0, "DS_ACCELERATOR=cuda asks for GPUs, but there is none"),
        (
            {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": ""},
            4,
            "asks for GPUs, but CUDA_VISIBLE_DEVICES shows none",
        ),
        (
            {"DS_ACCELERATOR": "CUDA"},
            4,
            r"DS_ACCELERATOR=CUDA \(did you mean 'cuda'\?\): ranks compute on cuda or cpu",
        ),
        (
            {"DS_ACCELERATOR": "xpu"},
            4,
            "DS_ACCELERATOR=xpu.*: ranks compute on cuda or cpu; correct or unset it",
        ),
    ],
)
def test_a_device_that_is_not_there_is_never_replaced_by_another(variables, there, line):
    with pytest.raises(OwnError, match=line) as fault:
        count_gpus(variables, present(there))
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("slots", "shown"),
    [
        ("0,1", "GPU-a,GPU-b"),
        ("1", "GPU-b"),
        ("0,1,2", "GPU-a,GPU-b,GPU-c"),
        ("", "GPU-a,GPU-b,GPU-c"),
    ],
)
def test_a_rank_sees_the_gpus_that_the_user_has_named_and_no_others(slots, shown):
    """DeepSpeed's launcher has written numbers over the names."""
    found = {"CUDA_VISIBLE_DEVICES": slots, NAMED: "GPU-a,GPU-b,GPU-c"}
    put_back(found)
    assert found == {"CUDA_VISIBLE_DEVICES": shown}


def test_where_nothing_was_named_a_rank_keeps_what_the_launcher_says():
    found = {"CUDA_VISIBLE_DEVICES": "0,1"}
    put_back(found)
    assert found == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_task_of_srun_that_sees_one_gpu_takes_it_whatever_its_local_rank():
    assert [device_index(local, 1, task=True) for local in range(4)] == [0, 0, 0, 0]
    assert [device_index(local, 4, task=True) for local in range(4)] == [0, 1, 2, 3]
    assert device_index(1, 2, task=False) == 1


@pytest.mark.parametrize(("local", "seen", "task"), [(1, 1, False), (2, 2, True), (0, 0, False)])
def test_more_ranks_than_gpus_get_one_line(local, seen, task):
    with pytest.raises(OwnError, match=f"this is rank {local} of its host, .* it sees {seen} GPU"):
        device_index(local, seen, task=task)
