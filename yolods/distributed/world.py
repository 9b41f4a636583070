"""The world of ranks, and the few collectives that plain objects need. Safe in a single process."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from yolods.compat import default_store
from yolods.distributed.collective_waits import mark_collectives
from yolods.distributed.phases import waiting
from yolods.distributed.rank_env import (
    check_interfaces,
    check_threads,
    complete_environment,
    cpu_threads,
    forget_ranks,
    read_launched_rank,
    under_torchrun,
)
from yolods.hosts.devices import device_index
from yolods.hosts.probe import machine_id

T = TypeVar("T")

LOST = 75
"""Exit status of a rank that ends because it or another rank was lost or stuck (sysexits.h: try
again)."""
MEET_SECONDS = 300.0
"""Limit of the wait for all ranks at the start: imports over a slow network differ by minutes."""
COLLECTIVE = timedelta(hours=2)
"""Timeout of a collective. The watchdog ends a run that hangs long before. It must exceed the
longest legitimate wait within a collective. Ranks wait outside of one while a data set is checked
or downloaded (`Ranks.host_first`, `main_first`)."""


POLL_FIRST, POLL_LAST = 0.01, 1.0
"""Seconds between two looks at whether all ranks are there: at first, and in the end."""
_MEETINGS = itertools.count()
"""Numbers of this process's meetings, which are those of every rank, as for collectives."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank, world size and device. Every method is a collective, and a no-op in a
    world of one."""

    rank: int
    """Rank in the world."""
    size: int
    """World size."""
    local: int
    """Rank on this host."""
    host: str
    """Name of this host."""
    device: torch.device
    """Device on which this rank computes."""
    local_size: int = 1
    """Ranks on this host."""
    host_group: dist.ProcessGroup | None = None
    """All ranks on gloo, for data in host memory; None: the default group is on gloo already."""

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"rank {self.rank} on {self.host}"

    @property
    def is_main(self) -> bool:
        """Whether this rank logs and writes for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.host_group)

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every rank. It must be picklable."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def to_main(self, value: T) -> list[T]:
        """Every rank's value in rank order on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        box: list = [None] * self.size if self.is_main else []
        dist.gather_object(value, box if self.is_main else None, dst=0, group=self.host_group)
        return box

    def main_first(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 and return its result on all ranks, or raise its exception on all.

        The result and the exception must be picklable.
        """
        result, fault = None, None
        if self.is_main:
            try:
                result = work()
            # Whatever failed: the others are waiting to learn the outcome.
            except Exception as error:
                fault = error
        self._meet()
        result, fault = self.from_main((result, fault))
        if fault is not None:
            raise fault
        return result

    def _meet(self) -> None:
        """Wait for every rank, however long it takes; a collective would end after two hours."""
        if self.size == 1:
            return
        key = f"yolods/meeting/{next(_MEETINGS)}"
        store = default_store()
        store.add(key, 1)
        pause = POLL_FIRST
        with waiting():
            while store.add(key, 0) < self.size:
                time.sleep(pause)
                pause = min(2 * pause, POLL_LAST)

    def host_first(self, work: Callable[[], object]) -> None:
        """Do `work` on one rank of each host, while the others wait without a limit of time.

        If it fails on a host, its exception, which must be picklable, is raised on all ranks.
        """
        fault = None
        if self.local == 0:
            try:
                work()
            # Whatever failed: the others are waiting to learn the outcome.
            except Exception as error:
                fault = error
        self._meet()
        faults = self.from_main(self.to_main(fault))
        for fault in filter(None, faults):
            raise fault

    @torch.no_grad()
    def average_(
        self,
        tensors: Iterable[Tensor],
        *,
        group: dist.ProcessGroup | None = None,
        count: int | None = None,
    ) -> None:
        """Replace each tensor by its mean over the ranks, with one all-reduce.

        Args:
            tensors: all of one floating dtype.
            group: some of the ranks; None: all.
            count: size of the group.
        """
        tensors, count = list(tensors), count or self.size
        if count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=group)
        flat /= count
        for tensor, mean in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))


@dataclass(frozen=True)
class Share:
    """The part of the data on which a rank works."""

    dp_rank: int
    """Data-parallel rank: the index of the replica."""
    dp_size: int
    """Replicas of the model."""
    first_stage: bool = True
    """Whether this rank receives the model's inputs: all except later stages of a pipeline."""
    last_stage: bool = True
    """Whether this rank has the model's outputs: all except earlier stages of a pipeline."""
    alone: bool = True
    """Whether a forward pass needs no other rank; false under ZeRO-3 and in a pipeline."""
    group: dist.ProcessGroup | None = None
    """The ranks with the same weights and other data; None: all."""


def join_world() -> Ranks:
    """Join the other ranks through DeepSpeed: NCCL on GPUs, gloo on CPUs.

    Raises:
        UserError: as `read_launched_rank` and `complete_environment`, or the requested device,
            threads or interfaces do not exist.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    who = read_launched_rank(os.environ)
    if not who.launched:
        forget_ranks(os.environ)
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ.pop("LOCAL_SIZE", None)  # may be left over from another launcher
    if who.local_size is not None:
        os.environ["LOCAL_SIZE"] = str(who.local_size)
    if not under_torchrun(os.environ):  # torchrun's agent already serves a store at the address
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        if who.size == 1:
            # Port 0 is any free one, chosen when it is bound: no other process can take it first.
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    complete_environment(os.environ)
    accelerator = get_accelerator()
    gpu = accelerator.device_name() == "cuda"
    check_interfaces(os.environ, gpus=gpu)
    check_threads(os.environ)
    device = torch.device("cpu")
    if gpu:
        device = torch.device(
            "cuda", device_index(who.local, accelerator.device_count(), task=who.task)
        )
        torch.cuda.set_device(device)
        # DeepSpeed chooses its device by this variable.
        os.environ["LOCAL_RANK"] = str(device.index)
    # Before init_distributed, because DeepSpeed's backend keeps references to some collectives.
    mark_collectives(torch.cuda.Event if gpu else None)
    with join_timeout():
        deepspeed.init_distributed(
            dist_backend="nccl" if gpu else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=COLLECTIVE,
        )
        host = socket.gethostname()
        # NCCL would move pickled objects through GPU memory: on rank 0's GPU, the largest object
        # times the world size.
        hosts = dist.new_group(backend="gloo", timeout=COLLECTIVE) if gpu else None
        ranks = Ranks(who.rank, who.size, who.local, host, device, who.local_size or 1, hosts)
        if who.local_size is None:
            ranks = replace(ranks, local_size=_count_here(ranks))
    os.environ["LOCAL_SIZE"] = str(ranks.local_size)
    share_cores(os.environ)
    return ranks


def share_cores(environ: MutableMapping[str, str]) -> None:
    """Limit this process to its share of the host's cores.

    Also on GPUs, because the optimizer updates offloaded states on the CPU. OMP_NUM_THREADS is for
    DeepSpeed's CPUAdam, which has its own OpenMP and reads the variable when it is loaded.
    """
    threads = cpu_threads(environ)
    if threads is None:
        return
    torch.set_num_threads(threads)
    # A single process may later start others, which divide the cores among themselves.
    if environ["LOCAL_SIZE"] != "1":
        environ["OMP_NUM_THREADS"] = str(threads)


def _count_here(ranks: Ranks) -> int:
    """Number of ranks on this host, if the launcher does not tell. A collective."""
    machines: list[str] = [""] * ranks.size
    dist.all_gather_object(machines, machine_id(), group=ranks.host_group)
    return machines.count(machine_id())


@contextmanager
def join_timeout() -> Iterator[None]:
    """End the process with a message if the ranks do not meet within MEET_SECONDS.

    There is no watchdog yet that could do it.
    """

    def end() -> None:
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        waited = (
            f"rank {rank} on {socket.gethostname()} waited {MEET_SECONDS:g} s for all {size} ranks "
            "to reach"
        )
        where = f"{os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}"
        print(
            f"yolods: {waited} {where}: one did not start, is stuck, or cannot connect",
            file=sys.stderr,
        )
        sys.stderr.flush()
        # Not sys.exit: this is the timer's thread, and the main thread is blocked in C++.
        os._exit(LOST)

    timer = threading.Timer(MEET_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the world within, and leave it afterwards.

    After an error with several ranks the process group stays: NCCL would wait for lost ranks, and
    the end of the process frees everything.
    """
    ranks = join_world()
    try:
        yield ranks
    except Exception:
        if ranks.size == 1:
            leave()
        raise
    leave()


def leave() -> None:
    """Destroy the process group, so that no rank waits for one that is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()
