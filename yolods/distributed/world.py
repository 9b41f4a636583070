"""This process's place among the others, and the few collectives that plain objects need. Safe in a single process."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from yolods.distributed.collective_waits import mark_collectives
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
"""Exit status of a rank that ends because another one, or itself, was lost or stuck; sysexits.h: try again."""
MEET_SECONDS = 300.0
"""How long ranks wait for each other at the start: hosts that import over a slow network may be minutes apart."""
COLLECTIVE = timedelta(hours=2)
"""When a collective gives up. The watchdog ends a run that hangs long before; what is waited for so long is rank 0's
scan of a large data set."""


@dataclass(frozen=True)
class Ranks:
    """Rank, size and device of this process; every method is a collective and a no-op among one."""

    rank: int
    """Position over all hosts."""
    size: int
    """Processes over all hosts."""
    local: int
    """Position on this host."""
    host: str
    """Name of this host."""
    device: torch.device
    """Where this rank computes."""
    local_size: int = 1
    """Processes on this host."""
    host_group: dist.ProcessGroup | None = None
    """All ranks on gloo, for what is on hosts; None: all ranks are on gloo in any case."""

    @property
    def name(self) -> str:
        """As messages have it."""
        return f"rank {self.rank} on {self.host}"

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.host_group)

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every rank. The value has to be picklable."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def to_main(self, value: T) -> list[T]:
        """Every rank's value in rank order on rank 0; an empty list elsewhere."""
        if self.size == 1:
            return [value]
        box: list = [None] * self.size if self.is_main else []
        dist.gather_object(value, box if self.is_main else None, dst=0, group=self.host_group)
        return box

    def main_first(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 and hand its result to all; an exception is raised on every rank.

        The result and the exception have to be picklable.
        """
        result, fault = None, None
        if self.is_main:
            try:
                result = work()
            except Exception as error:  # the others wait: they have to learn of any failure whatever
                fault = error
        result, fault = self.from_main((result, fault))
        if fault is not None:
            raise fault
        return result

    @torch.no_grad()
    def average_(
        self, tensors: Iterable[Tensor], *, group: dist.ProcessGroup | None = None, count: int | None = None
    ) -> None:
        """Replace each tensor, of one floating dtype, by its mean over the ranks, in one all-reduce.

        Args:
            group: some of the ranks; None: all.
            count: how many they are.
        """
        tensors, count = list(tensors), count or self.size
        if count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=group)
        flat /= count
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


@dataclass(frozen=True)
class Share:
    """Which part of the data a rank works on."""

    dp_rank: int
    """Data-parallel rank: the replica."""
    dp_size: int
    """Replicas of the model."""
    first_stage: bool = True
    """Whether this rank is given the model's inputs: all are, but later stages of a pipeline."""
    last_stage: bool = True
    """Whether this rank has the model's outputs: all have, but earlier stages of a pipeline."""
    alone: bool = True
    """Whether a forward pass needs no other rank: it does under ZeRO-3 and on a pipeline."""
    group: dist.ProcessGroup | None = None
    """The ranks that hold the same weights and work on other data; None: all."""


def join_world() -> Ranks:
    """Meet the other ranks through DeepSpeed: NCCL on GPUs, gloo on CPUs.

    Raises:
        UserError: as `read_launched_rank` and `complete_environment`, or the device, the threads or the interfaces
            asked for are not there.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    who = read_launched_rank(os.environ)
    if not who.launched:
        forget_ranks(os.environ)
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ.pop("LOCAL_SIZE", None)  # it may be another launcher's
    if who.local_size is not None:
        os.environ["LOCAL_SIZE"] = str(who.local_size)
    if not under_torchrun(os.environ):  # whose own store waits at the address
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        if who.size == 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # any that is free when it is bound
    complete_environment(os.environ)
    accelerator = get_accelerator()
    gpu = accelerator.device_name() == "cuda"
    check_interfaces(os.environ, gpus=gpu)
    check_threads(os.environ)
    device = torch.device("cpu")
    if gpu:
        device = torch.device("cuda", device_index(who.local, accelerator.device_count(), task=who.task))
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)  # by which DeepSpeed takes a device as well
    mark_collectives(torch.cuda.Event if gpu else None)
    with join_timeout():
        deepspeed.init_distributed(
            dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False, timeout=COLLECTIVE
        )
        host = socket.gethostname()
        # NCCL would send pickled objects by way of the devices: the largest one times the ranks on that of rank 0.
        hosts = dist.new_group(backend="gloo", timeout=COLLECTIVE) if gpu else None
        ranks = Ranks(who.rank, who.size, who.local, host, device, who.local_size or 1, hosts)
        if who.local_size is None:
            ranks = replace(ranks, local_size=_count_here(ranks))
    os.environ["LOCAL_SIZE"] = str(ranks.local_size)
    share_cores(os.environ)
    return ranks


def share_cores(environ: MutableMapping[str, str]) -> None:
    """Keep this process to its share of the host's cores, on GPUs as well: states in host memory are stepped there.

    The variable is for DeepSpeed's CPUAdam, which brings an OpenMP of its own: that reads it when it is loaded.
    """
    threads = cpu_threads(environ)
    if threads is None:
        return
    torch.set_num_threads(threads)
    if environ["LOCAL_SIZE"] != "1":  # a process that is alone may start others later, which share them out anew
        environ["OMP_NUM_THREADS"] = str(threads)


def _count_here(ranks: Ranks) -> int:
    """How many ranks this host has, where the launcher does not say. A collective."""
    machines: list[str] = [""] * ranks.size
    dist.all_gather_object(machines, machine_id(), group=ranks.host_group)
    return machines.count(machine_id())


@contextmanager
def join_timeout() -> Iterator[None]:
    """Within, ranks meet: the process is ended, with a line, when that takes longer than MEET_SECONDS. There is no
    watchdog yet."""

    def end() -> None:
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        waited = f"rank {rank} on {socket.gethostname()} has waited {MEET_SECONDS:g} s for all {size} ranks to come to"
        where = f"{os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}"
        print(f"yolods: {waited} {where}: one has not started, is stuck, or does not get through", file=sys.stderr)
        sys.stderr.flush()
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
    """Within: this process among the others. After a fault they are left as they are: NCCL would wait for those that
    are gone, and the end of the process takes everything down."""
    ranks = join_world()
    try:
        yield ranks
    except Exception:
        if ranks.size == 1:
            leave()
        raise
    leave()


def leave() -> None:
    """Take down the process group, so that no rank waits for one that is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()
