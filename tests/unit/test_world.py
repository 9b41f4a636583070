"""One process among itself: every collective is a no-op, and none needs a process group."""

import socket
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from yolods.distributed.world import LOST, Ranks, leave, share_cores
from yolods.errors import UserError

ALONE = Ranks(rank=0, size=1, local=0, host="here", device=torch.device("cpu"))


def test_collectives_among_one():
    assert not dist.is_initialized()
    assert ALONE.is_main
    ALONE.barrier()
    assert ALONE.from_main({"a": 1}) == {"a": 1}
    assert ALONE.to_main("x") == ["x"]
    value = torch.tensor([1.5, 2.5])
    ALONE.average_([value])
    assert value.tolist() == [1.5, 2.5]
    leave()


def test_the_first_rank_works_and_its_exception_is_raised():
    assert ALONE.main_first(lambda: 42) == 42

    def fail():
        raise UserError("one line")

    with pytest.raises(UserError, match="one line"):
        ALONE.main_first(fail)


class Recorded:
    """Stands for torch.distributed among two ranks, of which the other one holds what `other`
    says."""

    def __init__(self, other):
        self.other = other

    def all_reduce(self, tensor, group=None):
        tensor.add_(self.other)


def test_the_mean_of_several_tensors_takes_one_collective(monkeypatch):
    from yolods.distributed import world

    pair = Ranks(rank=0, size=2, local=0, host=socket.gethostname(), device=torch.device("cpu"))
    tensors = [torch.tensor([[1.0, 2.0]]), torch.tensor(3.0)]
    views = [tensor.data_ptr() for tensor in tensors]
    monkeypatch.setattr(world, "dist", Recorded(torch.tensor([3.0, 4.0, 5.0])))
    pair.average_(iter(tensors))
    assert [tensor.tolist() for tensor in tensors] == [[[2.0, 3.0]], 4.0]
    assert [tensor.data_ptr() for tensor in tensors] == views


@pytest.mark.parametrize(
    ("given", "threads", "variable"),
    [
        ({"LOCAL_SIZE": "4"}, 2, "2"),
        ({"LOCAL_SIZE": "16"}, 1, "1"),
        ({"LOCAL_SIZE": "1"}, 8, None),
        ({"LOCAL_SIZE": "4", "OMP_NUM_THREADS": "3"}, None, "3"),
    ],
)
def test_ranks_of_a_host_share_its_cores_whatever_they_compute_on(
    monkeypatch, given, threads, variable
):
    """With offload a GPU's rank steps its optimizer on them, by an OpenMP that only the variable
    reaches."""
    told = []
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    share_cores(given)
    assert told == ([] if threads is None else [threads])
    assert given.get("OMP_NUM_THREADS") == variable


@pytest.mark.parametrize("group", [None, "hosts"])
def test_objects_go_by_the_hosts_group_where_there_is_one(monkeypatch, group):
    """Beside NCCL, which would send them by way of the GPUs."""
    from yolods.distributed import world

    used = {}
    recorded = SimpleNamespace(
        barrier=lambda group: used.update(barrier=group),
        broadcast_object_list=lambda box, src, group: used.update(from_main=group),
        gather_object=lambda value, box, dst, group: used.update(to_main=group),
    )
    monkeypatch.setattr(world, "dist", recorded)
    pair = Ranks(0, 2, 0, socket.gethostname(), torch.device("cpu"), host_group=group)
    pair.barrier()
    pair.from_main("x")
    pair.to_main("x")
    assert used == {"barrier": group, "from_main": group, "to_main": group}


def test_ranks_that_do_not_all_come_are_not_waited_for_for_ever(run_process, free_port):
    """Rank 0 of two, the other of which never starts."""
    words = "from yolods import compat; compat.skip_needless_builds()\n"
    words += "from yolods.distributed import world; world.MEET_SECONDS = 1.0; world.join_world()"
    port = str(free_port())
    environ = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": port}
    done = run_process(
        [sys.executable, "-c", words],
        env={**environ, "MASTER_ADDR": "127.0.0.1", "LOCAL_SIZE": "2"},
    )
    assert done.returncode == LOST
    said = (
        f"waited 1 s for all 2 ranks to reach 127.0.0.1, port {port}: one did not start, is stuck"
    )
    assert said in done.stderr
