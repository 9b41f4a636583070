"""Reads gradients from every kind of DeepSpeed optimizer and applies a decision to them.

Our decision replaces DeepSpeed's own overflow check, norm, unscaling and clipping. A step has two
parts: `squares` reads every local gradient once, when accumulation and reduction are over, and
after the decision DeepSpeed's own `step` carries it out. Every kind of optimizer calls its helpers
through the instance, so the adapters replace them on the instance and change no installed file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from yolods.zero.shards import Span


@dataclass(frozen=True)
class Decision:
    """What to do with a step's gradients."""

    skip: bool = False
    """Whether to leave all weights unchanged."""
    norm: float = 0.0
    """Global norm of the gradients as they are stored, with the loss scale still in them."""
    factor: float = 1.0
    """Factor on all gradients: unscaling and clipping in one."""
    factors: dict[str, float] | None = None
    """Factor per parameter, if the policy clips them separately; `factor` is then unused."""
    limit: float | None = None
    """Largest magnitude of an element after that."""


class Gradients:
    """Access to this rank's gradients in one kind of optimizer."""

    needs: tuple[str, ...] = ()
    """Attributes of DeepSpeed's optimizer that this class reads or replaces."""
    sharded = True
    """Whether replicas hold different parts of the gradients; if not, each holds all of them."""

    def __init__(
        self,
        optimizer: Any,
        spans: Sequence[Sequence[Span]],
        owners: Callable[[], Sequence[Tensor]],
    ) -> None:
        """
        Args:
            optimizer: the optimizer that `deepspeed.initialize` returned.
            spans: the parts of parameters in each of this rank's shards.
            owners: returns the fp32 masters, one per shard, whose `.grad` the inner optimizer
                reads.
        """
        self._optimizer, self._spans, self._owners = optimizer, spans, owners
        self.decision = Decision()
        self.names = [span.name for shard in spans for span in shard]
        """Parameter of each tensor that `slices` and `weights` return."""
        self._install()

    def slices(self) -> list[Tensor]:
        """This rank's reduced gradients, one per entry of `names`, with the loss scale in them."""
        raise NotImplementedError

    def weights(self) -> list[Tensor]:
        """The fp32 masters of the same parts."""
        shards = zip(self._spans, self._owners(), strict=True)
        return [part for spans, owner in shards for part in _cut(owner.data, spans)]

    @property
    def device(self) -> torch.device | None:
        """Where `slices` and `weights` are; None if this rank has none."""
        return next((owner.device for owner in self._owners()), None)

    def _of_owners(self) -> list[Tensor]:
        """Gradient parts, for kinds that store the gradients on the masters."""
        shards = zip(self._spans, self._owners(), strict=True)
        return [part for spans, owner in shards for part in _cut(owner.grad, spans)]

    def _install(self) -> None:
        """Make DeepSpeed's step use `decision` instead of looking at the gradients."""
        raise NotImplementedError

    def _scaled_norm(self) -> Tensor:
        """The norm, or inf to skip; on the CPU, where DeepSpeed's `bool()` waits for no device."""
        return torch.tensor(float("inf") if self.decision.skip else self.decision.norm)

    @property
    def _inner(self) -> Any:
        # Without ZeRO, DeepSpeed may return torch's optimizer itself.
        return getattr(self._optimizer, "optimizer", self._optimizer)

    def _settle(self, flat: Tensor, place: int) -> None:
        """Unscale and clip one shard's fp32 gradient in place, or leave it to the kernel."""
        decision = self.decision
        if self._folded(flat.device):
            return
        if decision.factors is not None:
            parts = _cut(flat, self._spans[place])
            torch._foreach_mul_(parts, [decision.factors[span.name] for span in self._spans[place]])
        elif decision.factor != 1:
            flat.mul_(decision.factor)
        if decision.limit is not None:
            flat.clamp_(-decision.limit, decision.limit)

    def _folded(self, device: torch.device) -> bool:
        """Let torch's fused kernel unscale, which saves a pass; False if it cannot."""
        inner, decision = self._inner, self.decision
        if not inner.defaults.get("fused"):
            return False
        # The kernel divides by one scalar `grad_scale`: no factors per parameter, and no limit.
        fold = decision.factors is None and decision.limit is None and decision.factor != 1
        # Reset to None otherwise: the last step's values would apply to this one.
        inner.grad_scale = torch.full((), 1.0 / decision.factor, device=device) if fold else None
        inner.found_inf = torch.zeros((), device=device) if fold else None
        return fold


class PlainGradients(Gradients):
    """fp32 without ZeRO: whole gradients on the parameters, the same on every replica."""

    sharded = False

    def slices(self) -> list[Tensor]:
        """Every parameter's gradient; empty for a parameter that the loss does not reach."""
        return [
            owner.new_zeros(0) if owner.grad is None else owner.grad for owner in self._owners()
        ]

    def _install(self) -> None:
        step = self._optimizer.step

        def decided_step(*arguments: Any, **named: Any) -> Any:
            if self.decision.skip:
                return None
            self._settle_all()
            return step(*arguments, **named)

        self._optimizer.step = decided_step

    def _settle_all(self) -> None:
        """Like `_settle`, for masters that are one whole parameter each."""
        decision, owners = self.decision, self._owners()
        named = [
            (name, each.grad)
            for name, each in zip(self.names, owners, strict=True)
            if each.grad is not None
        ]
        gradients = [gradient for _, gradient in named]
        if not gradients or self._folded(gradients[0].device):
            return
        if decision.factors is not None:
            torch._foreach_mul_(gradients, [decision.factors[name] for name, _ in named])
        elif decision.factor != 1:
            torch._foreach_mul_(gradients, decision.factor)
        if decision.limit is not None:
            # `clamp` has no foreach version with both bounds.
            torch._foreach_clamp_max_(gradients, decision.limit)
            torch._foreach_clamp_min_(gradients, -decision.limit)


class UnfusedGradients(PlainGradients):
    """bf16 without ZeRO (`FP16_UnfusedOptimizer`): bf16 gradients, which its step copies to fp32.

    Its step also computes a norm of its own; this kind has no helper that could replace it.
    """

    needs = (
        "fp16_groups",
        "fp32_groups",
        "overflow_checker",
        "unscale_and_clip_grads",
        "_skip_invalid_grad_norm",
    )

    def slices(self) -> list[Tensor]:
        """Every parameter's gradient; empty for a parameter that the loss does not reach."""
        weights = [weight for group in self._optimizer.fp16_groups for weight in group]
        return [weight.new_zeros(0) if weight.grad is None else weight.grad for weight in weights]

    def _install(self) -> None:
        self._optimizer.overflow_checker = self
        self._optimizer.unscale_and_clip_grads = self._unscale

    def check(self) -> bool:
        """The optimizer's overflow check, answered from the decision."""
        return self.decision.skip

    def _unscale(self, total_norm: Any, apply_scale: bool = True) -> float:
        self._optimizer._global_grad_norm = self._scaled_norm()
        # The factors contain the unscaling, so the scale that the optimizer asks for is 1.
        self._settle_all()
        return 1.0


class Bf16Gradients(Gradients):
    """ZeRO-1 in bf16 with fp32 accumulation (`BF16_Optimizer`): one flat fp32 gradient per group.

    Its step also computes a norm of its own; this kind has no helper that could replace it.
    """

    needs = ("fp32_groups_gradient_flat_partition", "clear_hp_grads", "clear_lp_grads", "clip_grad")

    def slices(self) -> list[Tensor]:
        """Parts of every flat partition."""
        flats = self._optimizer.fp32_groups_gradient_flat_partition
        return [
            part
            for spans, flat in zip(self._spans, flats, strict=True)
            for part in _cut(flat, spans)
        ]

    def _install(self) -> None:
        optimizer = self._optimizer
        step = optimizer.step
        # It would clip a second time, by its own norm.
        optimizer.clip_grad = 0.0

        def decided_step(closure: Any = None) -> None:
            if self.decision.skip:
                optimizer.overflow, optimizer._global_grad_norm = True, float("inf")
                optimizer.clear_hp_grads()
                optimizer.clear_lp_grads()
                return
            for place, flat in enumerate(optimizer.fp32_groups_gradient_flat_partition):
                self._settle(flat, place)
            step(closure)
            # After the step, which overwrites the norm.
            optimizer._global_grad_norm = self._scaled_norm()

        optimizer.step = decided_step


class PartitionedGradients(Gradients):
    """ZeRO-1 and 2: per group a list of slices, which DeepSpeed's step concatenates in fp32.

    Source: deepspeed/runtime/zero/stage_1_and_2.py, `step`, 0.19.8.
    """

    needs = (
        *(
            "averaged_gradients",
            "single_partition_of_fp32_groups",
            "check_grad_overflow",
            "check_overflow",
        ),
        *("scaled_global_norm", "unscale_and_clip_grads", "loss_scaler"),
    )

    def slices(self) -> list[Tensor]:
        """Slices of every group, without the padding between and after them."""
        found: list[Tensor] = []
        for place, spans in enumerate(self._spans):
            real = [
                each
                for each in self._optimizer.averaged_gradients[place]
                if not hasattr(each, "_zero_padding")
            ]
            # The rest is padding without a mark.
            found += real[: len(spans)]
        _check(found, self._spans)
        return found

    def _install(self) -> None:
        optimizer = self._optimizer
        # Without it, DeepSpeed does not call `check_overflow` in bf16.
        optimizer.check_grad_overflow = True
        optimizer.check_overflow = self._tell_overflow
        optimizer.scaled_global_norm = lambda norm_type=2: self._scaled_norm()
        optimizer.unscale_and_clip_grads = self._unscale

    def _tell_overflow(self, partition_gradients: bool = True) -> None:
        self._optimizer.overflow = self.decision.skip

    def _unscale(self, flats: list[Tensor], total_norm: Any) -> None:
        (flat,) = flats
        place = next(i for i, owner in enumerate(self._owners()) if owner.grad is flat)
        self._settle(flat, place)


class OffloadedGradients(PartitionedGradients):
    """ZeRO-1 and 2 with the optimizer on the host: flat fp32 gradients in host memory."""

    needs = (
        *PartitionedGradients.needs,
        *("set_norm_for_param_grad_in_gpu", "update_offload_overflow_tracker_for_param_grad"),
        *("update_offload_overflow_tracker", "_wait_for_offload_copies"),
    )

    def slices(self) -> list[Tensor]:
        """Parts of every flat gradient, once DeepSpeed's copies to the host are complete."""
        self._optimizer._wait_for_offload_copies()
        return self._of_owners()

    def _install(self) -> None:
        super()._install()
        # DeepSpeed reads each parameter's norm and overflow here and waits for the device each
        # time. The decision makes both unnecessary.
        self._optimizer.set_norm_for_param_grad_in_gpu = _nothing
        self._optimizer.update_offload_overflow_tracker_for_param_grad = _nothing
        self._optimizer.update_offload_overflow_tracker = _nothing


class Zero3Gradients(Gradients):
    """ZeRO-3: per sub-group a list of this rank's pieces.

    Source: deepspeed/runtime/zero/stage3.py, `step`, 0.19.8.
    """

    needs = (
        *(
            "averaged_gradients",
            "fp32_partitioned_groups_flat",
            "check_overflow",
            "_get_norm_groups",
        ),
        *("unscale_and_clip_grads", "loss_scaler"),
    )

    def slices(self) -> list[Tensor]:
        """Pieces of every sub-group without their padding, in any shape."""
        found: list[Tensor] = []
        for place, spans in enumerate(self._spans):
            pieces = self._optimizer.averaged_gradients[place]
            if place not in self._order:
                # Computed once: pieces keep their places from step to step. Parameters without a
                # part on this rank have a piece of padding but no span.
                starts = accumulate((piece.numel() for piece in pieces), initial=0)
                index = {start: i for i, start in enumerate(starts)}
                self._order[place] = [index[span.start] for span in spans]
            for i, span in zip(self._order[place], spans, strict=True):
                piece = pieces[i]
                found.append(
                    piece
                    if piece.numel() == span.count
                    else piece.view(-1).narrow(0, 0, span.count)
                )
        return found

    def _install(self) -> None:
        self._order: dict[int, list[int]] = {}
        optimizer = self._optimizer
        optimizer.check_overflow = self._tell_overflow
        optimizer._get_norm_groups = lambda: [self._scaled_norm()]
        optimizer.unscale_and_clip_grads = self._unscale

    def _tell_overflow(self, partition_gradients: bool = True) -> None:
        self._optimizer.overflow = self.decision.skip

    def _unscale(self, place: int, total_norm: Any) -> None:
        self._settle(self._optimizer.fp32_partitioned_groups_flat[place].grad, place)


class OffloadedZero3Gradients(Zero3Gradients):
    """ZeRO-3 with the optimizer on the host: per sub-group one flat fp32 gradient there."""

    needs = (*Zero3Gradients.needs, "_constant_buffered_norm2")

    def slices(self) -> list[Tensor]:
        """Parts of every flat gradient."""
        return self._of_owners()

    def _install(self) -> None:
        super()._install()
        self._optimizer._constant_buffered_norm2 = _nothing


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _cut(flat: Tensor, spans: Sequence[Span]) -> list[Tensor]:
    flat = flat.view(-1)
    return [flat.narrow(0, span.start, span.count) for span in spans]


def _check(found: list[Tensor], spans: Sequence[Sequence[Span]]) -> None:
    """Refuse gradients of unexpected number or size.

    A gradient under another parameter's name would be worse than none.
    """
    expected = [span for shard in spans for span in shard]
    wrong = [
        span.name
        for span, tensor in zip(expected, found, strict=False)
        if tensor is None or tensor.numel() != span.count
    ]
    if wrong or len(found) != len(expected):
        raise RuntimeError(
            f"the layout of DeepSpeed's reduced gradients differs from 0.19.8 ({len(found)} of "
            f"{len(expected)} parts; first difference at {wrong[0] if wrong else 'the end'}); "
            "install the versions of constraints.txt"
        )


_ADAPTERS: dict[tuple[str, bool], type[Gradients]] = {
    ("DeepSpeedZeroOptimizer", False): PartitionedGradients,
    ("DeepSpeedZeroOptimizer", True): OffloadedGradients,
    ("DeepSpeedZeroOptimizer_Stage3", False): Zero3Gradients,
    ("DeepSpeedZeroOptimizer_Stage3", True): OffloadedZero3Gradients,
    ("BF16_Optimizer", False): Bf16Gradients,
    ("FP16_UnfusedOptimizer", False): UnfusedGradients,
}
"""Name of DeepSpeed's optimizer, and whether it offloads -> the adapter. Names and not classes, so
that this module imports without DeepSpeed."""


def gradients_of(
    optimizer: Any, spans: Sequence[Sequence[Span]], owners: Callable[[], Sequence[Tensor]]
) -> Gradients:
    """The adapter for an optimizer that `deepspeed.initialize` returned.

    Raises:
        RuntimeError: this DeepSpeed lacks a method or attribute that the adapter replaces or reads.
    """
    offload = bool(
        getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False)
    )
    kind = _ADAPTERS.get((type(optimizer).__name__, offload))
    if kind is None and isinstance(optimizer, torch.optim.Optimizer):
        kind = PlainGradients
    missing = [] if kind is None else [name for name in kind.needs if not hasattr(optimizer, name)]
    if kind is None or missing:
        import deepspeed

        lacks = f" lacks {', '.join(missing)}" if missing else " is not supported"
        raise RuntimeError(
            f"deepspeed {deepspeed.__version__}: {type(optimizer).__name__}{lacks}; yolods' "
            "overflow handling and clipping fit deepspeed 0.19.8. Install the versions of "
            'constraints.txt, or set "yolods": {"overflow": {"handling": "stock"}}'
        )
    return kind(optimizer, spans, owners)


ROW = 2**15
"""Most elements that a CPU sums up in one row.

A norm on a CPU accumulates in fp32; for tensors of tens of millions of elements it was wrong by
0.65% (torch 2.13).
"""
SMALL = 2**12
"""Up to this many elements, tensors share one call on a CPU."""
_multiplied = torch.ops.aten.native_batch_norm_backward.default


@torch.no_grad()
def squares(parts: Sequence[Tensor], places: Tensor, count: int) -> Tensor:
    """The sum of squares of every parameter's parts, in one pass.

    If the norm of a part is not finite, its parameter's sum is not either: inf if it contains an
    inf, nan if it contains a nan. A norm above 1.8e19, whose square exceeds fp32, also counts as
    inf.

    Args:
        parts: this rank's slices, of any floating-point dtype.
        places: (len(parts),) int64, the index of each part's parameter; on the parts' device.
        count: number of parameters.

    Returns:
        (count,) fp32 on that device. The call does not wait for the device.
    """
    totals = torch.zeros(count, device=places.device)
    if not parts:
        return totals
    if places.device.type == "cpu":
        found, which = _on_cpu(parts)
        return totals.index_add_(0, places[which], found)
    return totals.index_add_(
        0, places, torch.stack(torch._foreach_norm(parts, 2, dtype=torch.float32)).square_()
    )


def _on_cpu(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sums of squares (pieces,) fp32, and the index of each piece's part (pieces,) int64."""
    found, which, small, whose = [], [], [], []
    for place, part in enumerate(parts):
        flat, count = part.reshape(-1), part.numel()
        if count > SMALL:
            # A power of two of equal rows, of at most ROW elements each. The remainder joins the
            # small tensors.
            rows = 1 << (count // ROW).bit_length()
            rest = count % rows
            found.append(_of_rows(flat[: count - rest].view(rows, -1)))
            which += [place] * rows
            if not rest:
                continue
            flat = flat[count - rest :]
        small.append(flat)
        whose.append(place)
    if small:
        found.append(torch.stack(torch._foreach_norm(small, 2, dtype=torch.float32)).square_())
    return torch.cat(found), torch.tensor(which + whose)


def _of_rows(rows: Tensor) -> Tensor:
    """The sum of squares of every row of (rows, n): (rows,) fp32.

    On a CPU, a norm first copies 16-bit values to fp32, which takes longer than reading them. The
    gradient of BatchNorm's weight needs no such copy and accumulates in fp32: per channel, it is
    the sum of the output's gradient times the input, minus a mean (here 0) and divided by a
    deviation (here 1).
    """
    if rows.itemsize > 2:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).square_()
    mean, deviation = _standard(len(rows))
    channels, only_weight = rows.unsqueeze(0), [False, True, False]
    return _multiplied(
        channels, channels, deviation, None, None, mean, deviation, True, 0.0, only_weight
    )[1]


@cache
def _standard(channels: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(channels), torch.ones(channels)
