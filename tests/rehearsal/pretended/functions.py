"""What Python asks of tensors: where they are, and to be brought elsewhere. C++ would answer that
all is on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.rehearsal.pretended.claims import claim, memory_of, on_device
from tests.rehearsal.pretended.copies import copying, moved
from tests.rehearsal.pretended.streams import HOST
from tests.rehearsal.pretended.world import World

CPU = torch.device("cpu")
_Answer = Callable[[World, Any, Any, dict[str, Any]], Any]


class Functions(TorchFunctionMode):
    """Every function of torch that Python calls, before autograd."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = _ANSWERS.get(func)
        if answer is None:
            return func(*args, **(kwargs or {}))
        return answer(self._world, func, args, dict(kwargs or {}))


def _is_cuda(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")


def _pin(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    (tensor, *_) = args
    if on_device(tensor):
        world.record.mixup("pin_memory of a tensor of the device")
    return (
        tensor if memory_of(tensor) == "pinned" else claim(tensor.clone(), "pinned", world.ledger)
    )


def _numpy(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if on_device(args[0]):
        world.record.mixup("numpy of a tensor of the device")
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return _read_by_host(world, func, args, kwargs)


def _read_by_host(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """All values at once; what is pinned may still be under way."""
    if memory_of(args[0]) == "pinned":
        world.races.use(func.__name__, HOST, [args[0]], [])
    if not on_device(args[0]):
        return func(*args, **kwargs)
    world.streams.host_waits(func.__name__)
    with world.record.deaf():
        return func(*args, **kwargs)


def _deepcopy(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """It copies storages behind the dispatcher."""
    made = func(*args, **kwargs)
    return (
        claim(made, "device", world.ledger) if on_device(args[0]) and not on_device(made) else made
    )


def _type(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if len(args) == 1 and not kwargs:
        name = func(*args)
        return name.replace("torch.", "torch.cuda.") if on_device(args[0]) else name
    wanted = args[1] if len(args) > 1 else kwargs.pop("dtype")
    if isinstance(wanted, torch.dtype):
        return func(args[0], wanted, **kwargs)
    dtype = torch.empty(0).type(str(wanted).replace("torch.cuda.", "torch.")).dtype
    return _bring(world, args[0], "cuda" in str(wanted), dtype)


def _type_as(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    return _bring(world, args[0], on_device(args[1]), args[1].dtype)


def _cuda(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    return _bring(world, args[0], True, non_blocking=kwargs.get("non_blocking", False))


def _cpu(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    return _bring(world, args[0], False)


def _to(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    tensor, *rest = args
    given = dict(kwargs)
    copy = kwargs.pop("copy", False)
    other = kwargs.pop("other", None)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
    if other is not None:
        rest[:0] = [world.device if on_device(other) else CPU, other.dtype]
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*rest, **kwargs)
    to_device = on_device(tensor) if device is None else _is_cuda(device)
    if not to_device and not on_device(tensor):
        return func(*args, **given)  # among the host's and meta tensors
    return _bring(
        world, tensor, to_device, dtype, non_blocking=non_blocking, copy=copy, layout=layout
    )


def _bring(
    world: World,
    tensor: Tensor,
    to_device: bool,
    dtype: torch.dtype | None = None,
    *,
    non_blocking: bool = False,
    copy: bool = False,
    layout: torch.memory_format | None = None,
) -> Tensor:
    """What `to` gives: the tensor itself where nothing is to be changed."""
    form = {"dtype": tensor.dtype if dtype is None else dtype}
    if layout is not None:
        form["memory_format"] = layout
    if to_device == on_device(tensor):
        return tensor.to(copy=copy, **form)
    return moved(world, tensor, to_device, non_blocking, lambda: tensor.to(copy=True, **form))


def _from_python(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`tensor`, `as_tensor` and `new_tensor` make their tensor on the host, and copy it."""
    source = args[0] if args and isinstance(args[0], Tensor) else None
    device = kwargs.pop("device", None)
    pinned = kwargs.pop("pin_memory", False)
    to_device = _is_cuda(device) if device is not None else source is not None and on_device(source)
    if func is torch.as_tensor and source is not None:
        return _bring(world, source, to_device, kwargs.get("dtype"))
    data = args[1] if func is Tensor.new_tensor else source
    already = isinstance(data, Tensor) and on_device(data)
    made = func(*args, **kwargs)
    if not to_device:
        return claim(made, "pinned", world.ledger) if pinned else made
    claim(made, "device", world.ledger)
    if not already:
        world.streams.host_waits("copy to the device, out of Python's values")
    return made


def _alike(world: World, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`*_like` and `new_*` are where their tensor is, unless they are told."""
    device, here = kwargs.get("device"), on_device(args[0])
    if not here or _is_cuda(device):
        return func(*args, **kwargs)
    if device is None:
        return func(*args, **{**kwargs, "device": world.device})
    with copying(world):
        made = func(*args, **{key: value for key, value in kwargs.items() if key != "pin_memory"})
    return claim(made, "pinned", world.ledger) if kwargs.get("pin_memory") else made


_ANSWERS: dict[Any, _Answer] = {
    Tensor.device.__get__: lambda world, func, args, _: (
        world.device if on_device(args[0]) else func(*args)
    ),
    Tensor.is_cuda.__get__: lambda world, func, args, _: on_device(args[0]),
    Tensor.is_cpu.__get__: lambda world, func, args, _: func(*args) and not on_device(args[0]),
    Tensor.get_device: lambda world, func, args, _: (
        world.device.index if on_device(args[0]) else func(*args)
    ),
    Tensor.is_pinned: lambda world, func, args, _: memory_of(args[0]) == "pinned",
    Tensor.pin_memory: _pin,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.__deepcopy__: _deepcopy,
    Tensor.type: _type,
    Tensor.type_as: _type_as,
    Tensor.to: _to,
    Tensor.cuda: _cuda,
    Tensor.cpu: _cpu,
    **dict.fromkeys((Tensor.tolist, Tensor.__repr__, Tensor.__reduce_ex__), _read_by_host),
    **dict.fromkeys((torch.tensor, torch.as_tensor, Tensor.new_tensor), _from_python),
    **dict.fromkeys(
        (
            *(torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like),
            *(torch.rand_like, torch.randn_like, torch.randint_like),
            *(
                Tensor.new_empty,
                Tensor.new_zeros,
                Tensor.new_ones,
                Tensor.new_full,
                Tensor.new_empty_strided,
            ),
        ),
        _alike,
    ),
}
