"""A device that is not there: CPU tensors that claim to be on `cuda:0`, so that what a GPU would do
to this code shows.

    record.py       what was seen: waits of the host, mix-ups, collectives of host tensors, races;
                    each with its place
    claims.py       which storages are the device's or pinned, and how many bytes the device holds
    streams.py      streams, events and the host as vector clocks
    races.py        memory that two of them use in no order
    world.py        all of these together: one device
    copies.py       copies between host and device, and which of them the host waits for
    functions.py    what Python asks of tensors (TorchFunctionMode): `.device`, `.to`, `.tolist`
    kernels.py      what reaches the dispatcher (TorchDispatchMode): claims spread, waits and
                    mix-ups are noted
    collectives.py  gloo that answers as NCCL
    autocast.py     CUDA's autocast
    cuda.py         torch.cuda and DeepSpeed's accelerator

Every value is computed, and true. Nothing here knows yolods: `rehearse` runs any callable.

Limits. This is no GPU, and shows nothing about:

- time, and how fast anything is: events know no durations, and the device is never behind the host.
- CUDA's kernels: cuDNN, TF32, atomics, whatever is not deterministic there; and CPUAdam, which has
  to be compiled.
- autograd's thread for the device: backward passes run in the thread that asked for them.
- NCCL itself: its first meeting of two ranks is rehearsed in test_rendezvous.py, and not here.
- allocation: claimed bytes are rounded as CUDA's allocator rounds them, but blocks, their reuse on
  other streams (`record_stream`) and fragmentation are not pretended, nor the workspaces of
  kernels.
- other threads and processes: what they do with tensors is not seen, the loader's pinning thread
  included.
- what C++ makes of a claimed tensor's options: it finds the CPU there. Composite operations that
  build a tensor from options, and branch by device, take the CPU's way.
- autocast's cache of casts.
- memory of the host that is not pinned, and what numpy does with pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch

from tests.rehearsal.pretended.autocast import cuda_autocast
from tests.rehearsal.pretended.claims import Ledger
from tests.rehearsal.pretended.collectives import Collectives
from tests.rehearsal.pretended.cuda import cuda_of, deepspeed_on_cuda
from tests.rehearsal.pretended.functions import Functions
from tests.rehearsal.pretended.kernels import Kernels
from tests.rehearsal.pretended.record import Record, Sight
from tests.rehearsal.pretended.world import World

__all__ = ["Ledger", "Record", "Sight", "World", "pretended_device", "rehearse"]
T = TypeVar("T")


@contextmanager
def pretended_device(*, deepspeed: bool = True) -> Iterator[World]:
    """Within, in this thread, the machine has a GPU. What was made outside stays on the host.

    Args:
        deepspeed: DeepSpeed takes its accelerator for CUDA; else it stays with the one it has
            chosen.
    """
    world = World()
    collectives, functions = Collectives(world), Functions(world)
    run_backward = torch.autograd._engine_run_backward

    def run_backward_asked(*arguments: Any, **named: Any) -> Any:
        with functions:  # hooks are Python, and `backward` itself has been taken out of the mode
            return run_backward(*arguments, **named)

    with ExitStack() as stack:
        stack.enter_context(cuda_of(world))
        if deepspeed:
            stack.enter_context(deepspeed_on_cuda())
        stack.enter_context(collectives.answering())
        stack.enter_context(cuda_autocast())
        stack.enter_context(
            patch.object(torch.autograd, "_engine_run_backward", run_backward_asked)
        )
        stack.enter_context(Kernels(world, collectives))
        stack.enter_context(functions)
        yield world


def rehearse(work: Callable[[], T]) -> tuple[T, Record]:
    """Call `work` where the machine has a GPU; what it returned, and what was seen meanwhile."""
    with pretended_device() as world:
        return work(), world.record


@contextmanager
def unused_device() -> Iterator[World]:
    """Within, the machine has a GPU, and DeepSpeed stays with the accelerator that it has:
    DS_ACCELERATOR=cpu."""
    with pretended_device(deepspeed=False) as world:
        yield world
