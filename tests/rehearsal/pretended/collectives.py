"""Gloo that answers as NCCL: collectives run on a stream of their own, and refuse what is not on
the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from tests.rehearsal.pretended.claims import on_device, tensors_in
from tests.rehearsal.pretended.copies import copying
from tests.rehearsal.pretended.record import sight
from tests.rehearsal.pretended.streams import HOST
from tests.rehearsal.pretended.world import World


class Collectives:
    """What is launched on process groups, and what is waited for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._gloo: set[str] = set()
        """Names of the groups that were asked for as gloo: of the host."""
        self._under_way: dict[int, tuple[dist.Work, Hashable]] = {}
        """Handles by their id, which they keep while they are held here, and the streams that they
        run on."""

    def launch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A collective, a send or a receive, from the dispatcher."""
        name = func._schema.name.split("::")[-1]
        group = next(_groups_in(args), None)
        if group is not None and group.group_name in self._gloo:
            return func(*args, **kwargs)
        made = func(*args, **kwargs)
        if name == "barrier":
            self._world.streams.host_waits("barrier")
            return made
        tensors = list(tensors_in(args))
        self._refuse(name, tensors)
        stream = f"nccl of {group.group_name if group is not None else 'the world'}"
        self._world.clocks.meet(stream, self._world.stream)
        reads = tensors if name in ("send",) else []
        self._world.races.use(name, stream, reads, [] if reads else tensors)
        for work in _works_in(made):
            self._under_way[id(work)] = (work, stream)
        return made

    def _refuse(self, name: str, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if not on_device(tensor):
                self._world.record.host_collectives[
                    sight(f"{name} of a host tensor {tuple(tensor.shape)}")
                ] += 1
            elif not tensor.is_contiguous():
                self._world.record.mixup(
                    f"{name} of a tensor that is not contiguous, {tuple(tensor.shape)}"
                )

    def _waited(self, work: dist.Work) -> None:
        """The current stream, and not the host, waits."""
        _, stream = self._under_way.pop(id(work), (work, None))
        if stream is not None:
            self._world.clocks.meet(self._world.stream, stream)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within, torch.distributed has NCCL."""
        work_wait, work_completed = dist.Work.wait, dist.Work.is_completed
        init, new_group, backend_of = dist.init_process_group, dist.new_group, dist.get_backend

        def wait(work: dist.Work, *arguments: Any, **named: Any) -> Any:
            with copying(self._world):  # gloo's own copies
                result = work_wait(work, *arguments, **named)
            self._waited(work)
            return result

        def is_completed(work: dist.Work) -> bool:
            done = work_completed(work)
            if done and id(work) in self._under_way:
                self._world.clocks.meet(HOST, self._under_way.pop(id(work))[1])
            return done

        def init_process_group(backend: str | None = None, *arguments: Any, **named: Any) -> None:
            named.pop("device_id", None)
            init("gloo", *arguments, **named)
            if backend == "gloo":
                self._gloo.add(dist.group.WORLD.group_name)

        def make_group(*arguments: Any, **named: Any) -> Any:
            backend = named.pop("backend", None)
            named.pop("device_id", None)
            group = new_group(*arguments, **named)
            if backend == "gloo" and isinstance(group, dist.ProcessGroup):
                self._gloo.add(group.group_name)
            return group

        def get_backend(group: Any = None) -> str:
            backend_of(group)
            return "gloo" if (group or dist.group.WORLD).group_name in self._gloo else "nccl"

        def device_of_objects(group: Any = None) -> torch.device:
            return torch.device("cpu") if get_backend(group) == "gloo" else self._world.device

        replaced: dict[str, Callable[..., Any]] = {
            "init_process_group": init_process_group,
            "new_group": make_group,
            "get_backend": get_backend,
            "is_nccl_available": lambda: True,
        }
        with ExitStack() as stack:
            for module in (dist, distributed_c10d):
                for name, function in replaced.items():
                    stack.enter_context(patch.object(module, name, function))
            stack.enter_context(
                patch.object(distributed_c10d, "_get_object_coll_device", device_of_objects)
            )
            stack.enter_context(patch.object(dist.Work, "wait", wait))
            stack.enter_context(patch.object(dist.Work, "is_completed", is_completed))
            yield


def _groups_in(args: Any) -> Iterator[dist.ProcessGroup]:
    for each in args:
        if isinstance(each, torch.ScriptObject) and "ProcessGroup" in str(each._type()):
            yield dist.ProcessGroup.unbox(each)


def _works_in(made: Any) -> Iterator[dist.Work]:
    for each in made if isinstance(made, list | tuple) else (made,):
        if isinstance(each, torch.ScriptObject) and "Work" in str(each._type()):
            yield dist.Work.unbox(each)
