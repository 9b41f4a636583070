"""All-reduces whole gradients while the backward pass computes the others (ZeRO-0).

DeepSpeed reduces them in one call when the backward pass is over (runtime/engine.py,
`buffered_allreduce_fallback`, 0.19.8). As in PyTorch DDP (2006.15704), parameters share buckets in
the reverse order of the model, about the order in which their gradients become known. A bucket is
sent when all its gradients and all buckets before it are ready, so that every rank sends the same
buckets in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(eq=False)
class _Bucket:
    """Parameters whose gradients travel together."""

    parameters: Sequence[nn.Parameter]
    missing: set[int] = field(default_factory=set)
    """Identities of the parameters whose gradients are not known yet."""
    work: dist.Work | None = None
    """The all-reduce, once it has begun."""
    flat: Tensor | None = None
    """All gradients, (elements,) in the type in which they travel."""

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Become ready for the next backward pass."""
        self.missing = {id(parameter) for parameter in self.parameters}
        self.work = self.flat = None


class WholeReduction:
    """Replaces DeepSpeed's reduction on one engine without ZeRO."""

    @staticmethod
    def fits(engine: Any) -> bool:
        """Whether DeepSpeed would reduce the parameters' own gradients, without further factors."""
        return (
            not hasattr(engine.optimizer, "get_grads_for_reduction")
            and engine.postscale_gradients()
            and engine.gradient_predivide_factor() == 1
        )

    def __init__(self, engine: Any, group: dist.ProcessGroup, elements: int) -> None:
        """
        Args:
            engine: the result of `deepspeed.initialize`.
            group: the ranks that hold replicas.
            elements: most elements of a bucket that has several gradients.
        """
        self._engine, self._group, self._ranks = engine, group, dist.get_world_size(group)
        trained = [each for each in engine.module.parameters() if each.requires_grad]
        self._buckets = [_Bucket(found) for found in _cut(trained[::-1], elements)]
        self._bucket_of = {
            id(parameter): bucket for bucket in self._buckets for parameter in bucket.parameters
        }
        self._next = 0
        engine.buffered_allreduce_fallback = self._finish
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def _ready(self, parameter: nn.Parameter) -> None:
        """A gradient is known: in the last backward pass of a step, begin what can begin."""
        if self._engine.is_gradient_accumulation_boundary():
            self._bucket_of[id(parameter)].missing.discard(id(parameter))
            while self._next < len(self._buckets) and not self._buckets[self._next].missing:
                self._begin(self._buckets[self._next])

    def _begin(self, bucket: _Bucket) -> None:
        from deepspeed import comm

        self._next += 1
        flat = torch.cat([_gradient(each).reshape(-1) for each in bucket.parameters])
        bucket.flat = flat.to(self._engine.communication_data_type)
        bucket.work = comm.all_reduce(bucket.flat, group=self._group, async_op=True)

    def _finish(self, grads: Any = None, elements_per_buffer: int = 0) -> None:
        """DeepSpeed's `buffered_allreduce_fallback`: the mean of all gradients, in place."""
        for bucket in self._buckets[self._next :]:
            self._begin(bucket)
        self._next = 0
        for bucket in self._buckets:
            assert bucket.work is not None and bucket.flat is not None
            bucket.work.wait()
            if self._engine.gradient_average:
                bucket.flat.mul_(1 / self._ranks)
            parts = bucket.flat.split([each.numel() for each in bucket.parameters])
            for parameter, part in zip(bucket.parameters, parts, strict=True):
                _gradient(parameter).copy_(part.view(parameter.shape))
            bucket.forget()


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient; zeros, as in DeepSpeed, where the loss does not reach the parameter."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _cut(parameters: Sequence[nn.Parameter], elements: int) -> list[list[nn.Parameter]]:
    """Consecutive parameters of one data type, with at most `elements` elements if several."""
    cut: list[list[nn.Parameter]] = []
    filled = 0
    for parameter in parameters:
        if not cut or filled + parameter.numel() > elements or cut[-1][0].dtype != parameter.dtype:
            cut.append([])
            filled = 0
        cut[-1].append(parameter)
        filled += parameter.numel()
    return cut
