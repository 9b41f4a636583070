"""The gradients of a model as ZeRO leaves them on one rank, and the ways of handling them that
`clipping.py` compares.

Nothing is re-written here. Stock is DeepSpeed's own two optimizers with an `__init__` that sets
only what the part of their `step` between the reduction and the inner optimizer reads; that part
calls a handful of methods, which are called here in its order. Ours is `Stability.before_step` and
then the same methods, once an adapter of `stability.gradients` has put its own in their place, as
in a run. See stage_1_and_2.py and stage3.py in deepspeed/runtime/zero, `step`, 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.clipping_report import (
    DTYPES,
    FUSED,
    OURS,
    ROOFLINE,
    STOCK,
    TORCH,
    ZERO3,
    ZERO12,
    Name,
)
from yolods.config.deepspeed.yolods_block import YolodsConfig
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import meta_model
from yolods.optim.optimizers import freeze, parameter_groups
from yolods.stability.controller import Stability
from yolods.zero.gradients import PartitionedGradients, Zero3Gradients
from yolods.zero.loss_scale import LossScale, ScaleRules
from yolods.zero.shards import spans

KINDS = dict(zip(DTYPES, (torch.float16, torch.bfloat16, torch.float32), strict=True))
"""What the names of dtypes mean."""
LIMIT = 1.0
"""Largest global norm: what is left to do is unscaling in fp16, and clipping where there is no
scale."""
UNREACHED = 1e6
"""And for torch's function, which would otherwise clip the gradients that are measured next."""
SCALE = 1024.0
"""fp16's loss scale; below the norm over `LIMIT`."""
DEVIATION = 0.01
"""Of the gradients: the norm of 1e9 of them is 316, which fp16 can hold."""
BLOCK = 2**22
"""Random numbers that are drawn; the rest repeats them."""

Groups = Sequence[Sequence[tuple[str, torch.Size]]]


@cache
def groups_of(model: str) -> tuple[tuple[tuple[str, torch.Size], ...], ...]:
    """Names and shapes of the trained parameters of a model for 80 classes, in the optimizer's
    groups."""
    net = meta_model(architecture(parse_name(model), 80, 3))
    freeze(net, None)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = parameter_groups(net, 0.0)
    return tuple(
        tuple((names[id(each)], each.shape) for each in group["params"]) for group in groups
    )


class Held:
    """Reduced gradients of one rank alone, laid end to end; their fp32 copies, on which an
    optimizer steps."""

    def __init__(self, groups: Groups, dtype: torch.dtype, device: torch.device) -> None:
        self.groups, self.dtype, self.device = groups, dtype, device
        self.counts = [[shape.numel() for _, shape in group] for group in groups]
        self.parameters = sum(map(sum, self.counts))
        self.scale = SCALE if dtype == torch.float16 else 1.0
        self.flat: Tensor | None = None
        """All gradients; None while there are none."""
        self.gradients: list[list[Tensor]] = []
        """Views of them, one a parameter, by group; DeepSpeed's `averaged_gradients`."""
        self.owners = [SimpleNamespace(grad=None, device=device) for _ in groups]
        """In place of the fp32 masters, of which only the gradient and the device are asked for."""

    def hold_gradients(self) -> None:
        """Draw them."""
        self.flat = torch.empty(self.parameters, dtype=self.dtype, device=self.device)
        _fill(self.flat)
        start = 0
        for group in self.groups:
            views = []
            for _, shape in group:
                views.append(self.flat.narrow(0, start, shape.numel()).view(shape))
                start += shape.numel()
            self.gradients.append(views)

    def drop_gradients(self) -> None:
        """Give their memory back."""
        self.flat = None
        self.gradients.clear()

    def hold_masters(self) -> None:
        """Draw the fp32 copies, a flat one a group; or draw them anew, in the same memory."""
        for owner, counts in zip(self.owners, self.counts, strict=True):
            if owner.grad is None:
                owner.grad = torch.empty(sum(counts), device=self.device)
            _fill(owner.grad)

    def drop_masters(self) -> None:
        """Give their memory back."""
        for owner in self.owners:
            owner.grad = None


def _fill(flat: Tensor) -> None:
    if flat.is_meta:
        return
    generator = torch.Generator(flat.device).manual_seed(0)
    drawn = torch.empty(min(BLOCK, flat.numel()), device=flat.device).normal_(
        0, DEVIATION, generator=generator
    )
    for part in flat.split(BLOCK):
        part.copy_(drawn[: part.numel()])


class Way:
    """One way of handling a step's gradients."""

    def __init__(self, name: Name, held: Held) -> None:
        self.name, self.held = name, held

    applies_to = "masters"
    """Which tensors `apply` changes: `gradients`, `masters`, or nothing."""

    def measure(self) -> None:
        """All that comes before anything is applied."""
        raise NotImplementedError

    def apply(self) -> None:
        """Unscale and clip."""

    def norm(self) -> float | None:
        """The global norm that `measure` found."""
        return None


class Roofline(Way):
    """One sum over the gradients, laid end to end."""

    applies_to = ""

    def measure(self) -> None:
        """See `Way`."""
        assert self.held.flat is not None
        torch.sum(self.held.flat)


class ClipGradNorm(Way):
    """torch's function in its own two halves, on the gradients in their own dtype; nothing is
    checked or unscaled."""

    applies_to = "gradients"

    def measure(self) -> None:
        """See `Way`."""
        gradients = [each for group in self.held.gradients for each in group]
        self._total = torch.nn.utils.get_total_norm(gradients, foreach=True)

    def apply(self) -> None:
        """See `Way`."""
        parameters: Any = [
            SimpleNamespace(grad=each) for group in self.held.gradients for each in group
        ]
        torch.nn.utils.clip_grads_with_norm_(parameters, UNREACHED, self._total, foreach=True)

    def norm(self) -> float:
        """See `Way`."""
        return float(self._total) / self.held.scale


class Stock(Way):
    """DeepSpeed's own handling in a stage of ZeRO."""

    def __init__(self, name: Name, held: Held, *, fused: bool = False) -> None:
        """
        Args:
            fused: the inner optimizer is one of torch's fused ones.
        """
        super().__init__(name, held)
        self._optimizer = (_zero3 if name.stage == ZERO3 else _zero12)(held)
        self._optimizer.optimizer = SimpleNamespace(defaults={"fused": fused})
        self._total: Any = None

    def measure(self) -> None:
        """See `Way`."""
        from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm

        optimizer = self._optimizer
        if self.name.stage == ZERO3:
            optimizer._overflow_check_and_loss_scale_update(update_scale=False)
            self._total = combine_grad_norm_groups(optimizer._get_norm_groups())
            bad = is_invalid_grad_norm(self._total)
        else:
            if optimizer.check_grad_overflow:
                optimizer.check_overflow(partition_gradients=optimizer.partition_gradients)
            self._total = optimizer.scaled_global_norm()
            asked = self.held.dtype != torch.bfloat16 or optimizer.check_grad_overflow
            bad = asked and is_invalid_grad_norm(self._total)
        if optimizer.overflow or bad:
            raise RuntimeError("gradients of this benchmark do not overflow")

    def apply(self) -> None:
        """See `Way`."""
        for place, owner in enumerate(self.held.owners):
            if self.name.stage == ZERO3:
                self._optimizer.unscale_and_clip_grads(place, self._total)
            else:
                self._optimizer.unscale_and_clip_grads([owner.grad], self._total)

    def norm(self) -> float:
        """See `Way`."""
        return float(self._total) / self.held.scale


class Ours(Stock):
    """The handling of a run: judged first, and then DeepSpeed's step, which finds the decision."""

    def __init__(self, name: Name, held: Held, *, fused: bool = False) -> None:
        """See `Stock`."""
        super().__init__(name, held, fused=fused)
        kind = "pieces" if name.stage == ZERO3 else "flat"
        sizes = [sum(counts) for counts in held.counts]
        adapter = Zero3Gradients if name.stage == ZERO3 else PartitionedGradients
        gradients = adapter(
            self._optimizer, spans(kind, held.groups, sizes, 0, 1), lambda: held.owners
        )
        scale = LossScale(ScaleRules(static=held.scale)) if held.dtype == torch.float16 else None
        if scale is not None:
            self._optimizer.loss_scaler = scale
        self._stability = Stability(
            gradients,
            [name for group in held.groups for name, _ in group],
            YolodsConfig(),
            max_norm=LIMIT,
            scale=scale,
            by_hand=False,
            replica=0,
            world_size=2,  # so that its all-reduce is among what is counted
            device=held.device,
        )
        self._sums = torch.ones(5, device=held.device)

    def measure(self) -> None:
        """See `Way`."""
        self._record = self._stability.after_step(
            self._stability.before_step(self._sums, 1, can_return=True)
        )
        super().measure()

    def norm(self) -> float | None:
        """See `Way`."""
        return self._record.grad_norm


def ways(held: Held) -> list[Way]:
    """All that are compared."""
    return [
        Roofline(Name(ROOFLINE), held),
        ClipGradNorm(Name(TORCH), held),
        *(Ours(Name(OURS, stage), held) for stage in (ZERO12, ZERO3)),
        *(Ours(Name(FUSED, stage), held, fused=True) for stage in (ZERO12, ZERO3)),
        *(Stock(Name(STOCK, stage), held) for stage in (ZERO12, ZERO3)),
    ]


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Within: DeepSpeed's two optimizers take `device` for that of their accelerator."""
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2
    from deepspeed.accelerator import get_accelerator

    class Accelerator:
        """The present one under another name."""

        def __getattr__(self, name: str) -> Any:
            return getattr(get_accelerator(), name)

        def device_name(self, device_index: int | None = None) -> str:
            return str(device)

        def current_device_name(self) -> str:
            return str(device)

    modules = (deepspeed.runtime.zero.stage_1_and_2, deepspeed.runtime.zero.stage3)
    first, second = (
        mock.patch.object(module, "get_accelerator", Accelerator) for module in modules
    )
    with first, second:
        yield


def _common(held: Held) -> dict[str, Any]:
    """What both of DeepSpeed's optimizers read, for one rank without model parallelism."""
    return {
        "averaged_gradients": held.gradients,
        "dtype": held.dtype,
        "device": str(held.device),
        "clip_grad": LIMIT,
        "custom_loss_scaler": False,
        "loss_scaler": SimpleNamespace(cur_scale=held.scale),
        "dp_process_group": None,
        "model_parallel_group": None,
        "model_parallel_rank": 0,
        "overflow": False,
    }


def _zero12(held: Held) -> Any:
    """DeepSpeed's ZeRO-1 and 2."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    class Zero12(DeepSpeedZeroOptimizer):
        def __init__(self) -> None:
            vars(self).update(_common(held))
            self.bit16_groups = self.params_in_partition = _members(held)
            self.cpu_offload = self.has_moe_layers = False
            self.partition_gradients = True
            # deepspeed/runtime/engine.py, `_configure_zero_optimizer`
            self.check_grad_overflow = held.dtype == torch.float16
            self.groups_lacking_loss_scale: set[int] = set()

    return Zero12()


def _zero3(held: Held) -> Any:
    """DeepSpeed's ZeRO-3."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    class Zero3(DeepSpeedZeroOptimizer_Stage3):
        def __init__(self) -> None:
            vars(self).update(_common(held))
            self.fp16_groups = _members(held)
            self.fp32_partitioned_groups_flat = held.owners
            self.offload_optimizer = False
            self.sub_groups_lacking_loss_scale: set[int] = set()
            self.inf_or_nan_tracker = torch.zeros(1, dtype=torch.bool, device=held.device)
            self.reduce_and_partition_stream = get_accelerator().default_stream()

        @property
        def grad_partitions_flat_buffer(self) -> Tensor | None:
            return held.flat

    return Zero3()


def _members(held: Held) -> list[list[Any]]:
    """In place of the parameters, of which only marks are asked for that these have not."""
    return [[SimpleNamespace()] * len(group) for group in held.groups]
