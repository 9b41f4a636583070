"""torch.cuda and DeepSpeed's accelerator, as they are where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from tests.rehearsal.pretended.world import World

GIB = 2**30
MEMORY = 80 * GIB
_begin_loading = _SingleProcessDataLoaderIter.__init__
DEVICES = 8
PROPERTIES = SimpleNamespace(
    name="pretended",
    total_memory=MEMORY,
    major=9,
    minor=0,
    multi_processor_count=132,
    gcnArchName="",
    uuid="0",
)


@contextmanager
def cuda_of(world: World) -> Iterator[None]:
    """Within, `torch.cuda` is that of a machine with GPUs, of which this process uses one."""
    from torch.optim import optimizer

    with ExitStack() as stack:
        for name, answer in _answers(world).items():
            stack.enter_context(patch.object(torch.cuda, name, answer, create=True))
        stack.enter_context(patch.object(torch.version, "cuda", "13.0"))
        # Its parser takes no stream but torch's own.
        stack.enter_context(patch.object(Tensor, "record_stream", lambda tensor, stream: None))
        stack.enter_context(patch.object(_SingleProcessDataLoaderIter, "__init__", _pinning))
        for module in (optimizer, torch.utils._foreach_utils):
            stack.enter_context(
                patch.object(module, "_group_tensors_by_device_and_dtype", _grouped)
            )
        yield


@contextmanager
def deepspeed_on_cuda() -> Iterator[None]:
    """Within, DeepSpeed has its own accelerator for CUDA."""
    from deepspeed.accelerator import real_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    with patch.object(real_accelerator, "ds_accelerator", CUDA_Accelerator()):
        yield


def _answers(world: World) -> dict[str, Any]:
    ledger, streams = world.ledger, world.streams

    def choose(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        world.device = torch.device("cuda", index or 0)

    return {
        **dict.fromkeys(("is_available", "is_initialized"), lambda: True),
        **dict.fromkeys(("init", "_lazy_init", "ipc_collect", "empty_cache"), lambda: None),
        "_lazy_call": lambda call, **_: call(),
        "device_count": lambda: DEVICES,
        "current_device": lambda: world.device.index,
        "set_device": choose,
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "is_bf16_supported": lambda *_, **__: True,
        "can_device_access_peer": lambda *_: True,
        "is_current_stream_capturing": lambda: False,
        "mem_get_info": lambda device=None: (MEMORY - ledger.now, MEMORY),
        **dict.fromkeys(
            ("memory_allocated", "memory_reserved", "memory_cached"), lambda device=None: ledger.now
        ),
        **dict.fromkeys(
            ("max_memory_allocated", "max_memory_reserved", "max_memory_cached"),
            lambda device=None: ledger.peak,
        ),
        **dict.fromkeys(
            ("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"),
            lambda device=None: ledger.reset_peak(),
        ),
        "memory_stats": lambda device=None: {},
        "synchronize": streams.synchronize,
        "Stream": streams.make,
        "Event": streams.event,
        "stream": streams.use,
        "set_stream": streams.choose,
        "current_stream": lambda device=None: streams.current,
        "default_stream": lambda device=None: streams.default,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None,
        **dict.fromkeys(("manual_seed", "manual_seed_all"), lambda seed: None),
        "initial_seed": lambda: 0,
        "nvtx": SimpleNamespace(
            range_push=lambda message: 0, range_pop=lambda: 0, mark=lambda message: None
        ),
    }


def _pinning(batches: Any, loader: Any) -> None:
    """torch's loader without workers pins in the thread that asks it, and would find no device to
    pin for."""
    _begin_loading(batches, loader)
    batches._pin_memory = loader.pin_memory


def _grouped(
    lists: Sequence[Sequence[Tensor | None]], with_indices: bool = False
) -> dict[Any, Any]:
    """torch's optimizers group tensors by device and dtype in C++, which would find the CPU."""
    groups: dict[Any, Any] = {}
    for at, first in enumerate(lists[0]):
        assert first is not None
        members, places = groups.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for member, source in zip(members, lists, strict=True):
            if source:
                member.append(source[at])
        places.append(at)
    return groups
