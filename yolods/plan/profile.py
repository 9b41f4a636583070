"""Measures the time of every node on a device, with only one node in memory at a time."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from yolods.model.graph.graph import IMAGE, Graph, run_node

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure(
    graph: Graph,
    imgsz: int,
    micro_batch: int,
    device: torch.device,
    precision: str,
    repeats: int = 5,
) -> tuple[float, ...]:
    """Seconds for forward and backward of one micro-batch per node, the fastest of `repeats`.

    Args:
        graph: the nodes.
        imgsz: side of the images in pixels.
        micro_batch: number of images.
        device: device to measure on.
        precision: fp32, bf16 or fp16, as autocast over fp32 weights; convolutions take as long as
            with weights of that type.
        repeats: timed passes, after one that is not timed.
    """
    image = torch.rand(micro_batch, graph.channels, imgsz, imgsz, device=device)
    values: dict[str, Any] = {IMAGE: image.contiguous(memory_format=torch.channels_last)}
    seconds = []
    for node in graph.nodes:
        modules = {
            name: deepcopy(graph.skeleton.get_submodule(name)).to_empty(device=device).train()
            for name in node.modules
        }
        for module in modules.values():
            # `to_empty` leaves the memory uninitialised, and it may contain nan.
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.data.fill_(0.01)
        inputs = {name: values[name].detach().requires_grad_(name != IMAGE) for name in node.reads}
        with casting(precision, device):
            times = [_pass(node, modules, inputs, device) for _ in range(repeats + 1)]
            with torch.no_grad():
                values |= run_node(node, modules, inputs)
        seconds.append(min(times[1:]))
        # Frees the values that no later node reads.
        values = {
            name: value for name, value in values.items() if _last_reader(graph, name) > node.index
        }
    return tuple(seconds)


def casting(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to a precision; nothing for fp32."""
    dtype = _DTYPES[precision]
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def _last_reader(graph: Graph, value: str) -> int:
    """The last node that reads a value; -1 if none does, which a user's own yaml may cause."""
    return graph.lifetimes[value][1] if value in graph.lifetimes else -1


def _pass(
    node: Any, modules: dict[str, Any], inputs: dict[str, Tensor], device: torch.device
) -> float:
    _settle(device)
    began = time.perf_counter()
    outputs = _computed(run_node(node, modules, inputs))
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
    _settle(device)
    return time.perf_counter() - began


def _computed(values: Any) -> list[Tensor]:
    """The tensors that a node computed, in nested dictionaries and lists, without its inputs."""
    if isinstance(values, Tensor):
        return [values] if values.grad_fn is not None else []
    parts = (
        values.values()
        if isinstance(values, dict)
        else values
        if isinstance(values, list | tuple)
        else ()
    )
    return [tensor for part in parts for tensor in _computed(part)]


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
