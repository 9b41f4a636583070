"""`torch.autocast("cuda")` on tensors that are on the CPU: CPU's autocast, with CUDA's lists of
operations.

torch casts at a dispatch key of the tensor's backend, and here that is AutocastCPU. Its kernels are
exchanged for ones that do what torch's header says of AutocastCUDA, to tensors that claim to be on
the device; operations that only CPU's lists have are let through. Not pretended: that a weight
which is used twice in a pass is cast once.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.rehearsal.pretended.claims import on_device

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_LISTS = {
    "LOWER_PRECISION_FP": "lower",
    "FP32": "fp32",
    "FP32_SET_OPT_DTYPE": "fp32 by default",
    "DIFFERENT_REDISPATCH_SIGNATURE": "fp32",
    "PROMOTE": "widest",
}


@cache
def policies() -> dict[str, str]:
    """What becomes of the floating arguments of each operation (`name` or `name.overload`), from
    torch's own header."""
    text = HEADER.read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for name, policy in _LISTS.items():
        (body,) = re.findall(rf"#define AT_FORALL_{name}\(_\)(.*)", text)
        for operation, overload in re.findall(r"_\(\s*(\w+)\s*(?:,\s*(\w+)\s*)?\)", body):
            found[f"{operation}.{overload}" if overload else operation] = policy
        for called in re.findall(r'ADD_NS\(\w+\),\s*"([\w.]+)"', body):
            found[called] = policy
    return {
        name: policy
        for name, policy in found.items()
        if torch._C._dispatch_has_kernel(f"aten::{name}")
    }


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Within, `torch.autocast("cuda")` casts what claims to be on the device."""
    enable = torch.set_autocast_enabled

    def set_autocast_enabled(*arguments: Any) -> None:
        enable(*arguments)
        if arguments[0] == "cuda":
            enable("cpu", arguments[1])

    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    chosen = policies()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name in _names_with_kernels() | chosen.keys():
            kernel = (
                _kernel(name, chosen[name]) if name in chosen else torch.library.fallthrough_kernel
            )
            library.impl(name, kernel, allow_override=True)
    try:
        with patch.object(torch, "set_autocast_enabled", set_autocast_enabled):
            yield
    finally:
        library._destroy()


def _names_with_kernels() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    ours = [name for name in names if name.startswith("aten::")]
    held = [
        name for name in ours if torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCPU")
    ]
    return {name.removeprefix("aten::") for name in held}


def _kernel(name: str, policy: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            dtype = _dtype(policy, args, kwargs)
            if dtype is not None:
                args, kwargs = tree_map(lambda each: _cast(each, dtype), (args, kwargs))
            return operation(*args, **kwargs)

    return kernel


def _dtype(policy: str, args: Any, kwargs: dict[str, Any]) -> torch.dtype | None:
    """What floating arguments are cast to; None: they stay as they are."""
    if policy == "lower":
        return torch.get_autocast_dtype("cuda")
    if policy == "fp32 by default":
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.dtype)]
        return None if given else torch.float32
    if policy == "widest":
        dtypes = {
            each.dtype
            for each in (*args, *kwargs.values())
            if isinstance(each, Tensor) and _is_cast(each)
        }
        return torch.float32 if torch.float32 in dtypes else next(iter(dtypes), None)
    return torch.float32


def _is_cast(value: Any) -> bool:
    if (
        not isinstance(value, Tensor)
        or not value.is_floating_point()
        or value.dtype == torch.float64
    ):
        return False
    with torch._C.DisableTorchFunction():
        return on_device(value)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if _is_cast(value) else value
