"""Where every kind of DeepSpeed optimizer keeps this rank's gradients, how they are measured in one pass, and how what
was decided about them takes the place of DeepSpeed's own overflow check, norm, unscaling and clipping.

A step asks twice. `measure` reads every local gradient once, when accumulation and reduction are over. After the
decision DeepSpeed's own `step` runs, and meets it wherever it would have looked at the gradients itself: every kind
calls these helpers through its instance, so they are replaced there, and no installed file is touched.
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
    """What becomes of a step's gradients."""

    skip: bool = False
    """No weight is to move."""
    norm: float = 0.0
    """Global norm of the gradients as they lie there, the loss scale still in them."""
    factor: float = 1.0
    """What all of them are multiplied with: unscaling and clipping in one."""
    factors: dict[str, float] | None = None
    """The same by parameter, where a policy clips them apart; `factor` then counts for none."""
    limit: float | None = None
    """Largest magnitude of an element afterwards."""


class Gradients:
    """This rank's gradients behind one kind of optimizer."""

    needs: tuple[str, ...] = ()
    """What of DeepSpeed's optimizer this reads or replaces."""
    sharded = True
    """Whether replicas hold different parts; otherwise each holds the same whole."""

    def __init__(self, optimizer: Any, spans: Sequence[Sequence[Span]], owners: Callable[[], Sequence[Tensor]]) -> None:
        """
        Args:
            optimizer: what `deepspeed.initialize` returned.
            spans: what lies in each of this rank's shards.
            owners: the fp32 masters, one a shard, on which the inner optimizer finds its gradients.
        """
        self._optimizer, self._spans, self._owners = optimizer, spans, owners
        self.decision = Decision()
        self.names = [span.name for shard in spans for span in shard]
        """Whose the slices are that `slices` and `weights` give."""
        self._install()

    def slices(self) -> list[Tensor]:
        """This rank's reduced gradients, one tensor a name of `names`; the loss scale is still in them."""
        raise NotImplementedError

    def weights(self) -> list[Tensor]:
        """The fp32 masters of the same parts."""
        shards = zip(self._spans, self._owners(), strict=True)
        return [part for spans, owner in shards for part in _cut(owner.data, spans)]

    @property
    def device(self) -> torch.device | None:
        """Where `slices` and `weights` are; None where there are none."""
        return next((owner.device for owner in self._owners()), None)

    def _of_owners(self) -> list[Tensor]:
        """Parts of the gradients that lie on the masters already."""
        shards = zip(self._spans, self._owners(), strict=True)
        return [part for spans, owner in shards for part in _cut(owner.grad, spans)]

    def _install(self) -> None:
        """Put `decision` into the places where DeepSpeed's step looks at gradients."""
        raise NotImplementedError

    def _scaled_norm(self) -> Tensor:
        """On the CPU, so that DeepSpeed's later `bool()` of it waits for no device."""
        return torch.tensor(float("inf") if self.decision.skip else self.decision.norm)

    @property
    def _inner(self) -> Any:
        return getattr(self._optimizer, "optimizer", self._optimizer)

    def _settle(self, flat: Tensor, place: int) -> None:
        """Unscale and clip the fp32 gradient of one shard in place, or leave it to the optimizer's own kernel."""
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
        """Let a fused torch kernel divide while it steps, which saves a pass; False where that cannot be."""
        inner, decision = self._inner, self.decision
        if not inner.defaults.get("fused"):
            return False
        fold = decision.factors is None and decision.limit is None and decision.factor != 1
        inner.grad_scale = torch.full((), 1.0 / decision.factor, device=device) if fold else None
        inner.found_inf = torch.zeros((), device=device) if fold else None
        return fold


class PlainGradients(Gradients):
    """fp32 without ZeRO: whole gradients on the parameters, the same on every replica."""

    sharded = False

    def slices(self) -> list[Tensor]:
        """Every parameter's gradient; nothing for one that no loss has reached."""
        return [owner.new_zeros(0) if owner.grad is None else owner.grad for owner in self._owners()]

    def _install(self) -> None:
        step = self._optimizer.step

        def decided_step(*arguments: Any, **named: Any) -> Any:
            if self.decision.skip:
                return None
            self._settle_all()
            return step(*arguments, **named)

        self._optimizer.step = decided_step

    def _settle_all(self) -> None:
        """As `_settle`, for masters that are a whole parameter each."""
        decision, owners = self.decision, self._owners()
        named = [(name, each.grad) for name, each in zip(self.names, owners, strict=True) if each.grad is not None]
        gradients = [gradient for _, gradient in named]
        if not gradients or self._folded(gradients[0].device):
            return
        if decision.factors is not None:
            torch._foreach_mul_(gradients, [decision.factors[name] for name, _ in named])
        elif decision.factor != 1:
            torch._foreach_mul_(gradients, decision.factor)
        if decision.limit is not None:
            torch._foreach_clamp_max_(gradients, decision.limit)
            torch._foreach_clamp_min_(gradients, -decision.limit)


class UnfusedGradients(PlainGradients):
    """bf16 without ZeRO (`FP16_UnfusedOptimizer`): low-precision gradients, of which its step makes fp32 copies.

    It measures a norm of its own besides, for which this kind has no helper to replace.
    """

    needs = ("fp16_groups", "fp32_groups", "overflow_checker", "unscale_and_clip_grads", "_skip_invalid_grad_norm")

    def slices(self) -> list[Tensor]:
        """Every parameter's gradient; nothing for one that no loss has reached."""
        weights = [weight for group in self._optimizer.fp16_groups for weight in group]
        return [weight.new_zeros(0) if weight.grad is None else weight.grad for weight in weights]

    def _install(self) -> None:
        self._optimizer.overflow_checker = self
        self._optimizer.unscale_and_clip_grads = self._unscale

    def check(self) -> bool:
        """What the optimizer asks its overflow checker."""
        return self.decision.skip

    def _unscale(self, total_norm: Any, apply_scale: bool = True) -> float:
        self._optimizer._global_grad_norm = self._scaled_norm()
        self._settle_all()
        return 1.0


class Bf16Gradients(Gradients):
    """ZeRO-1 in bf16 with fp32 accumulation (`BF16_Optimizer`): a flat fp32 gradient partition a group.

    It measures a norm of its own besides, for which this kind has no helper to replace.
    """

    needs = ("fp32_groups_gradient_flat_partition", "clear_hp_grads", "clear_lp_grads", "clip_grad")

    def slices(self) -> list[Tensor]:
        """Parts of every flat partition."""
        flats = self._optimizer.fp32_groups_gradient_flat_partition
        return [part for spans, flat in zip(self._spans, flats, strict=True) for part in _cut(flat, spans)]

    def _install(self) -> None:
        optimizer = self._optimizer
        step = optimizer.step
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
            optimizer._global_grad_norm = self._scaled_norm()

        optimizer.step = decided_step


class PartitionedGradients(Gradients):
    """ZeRO-1 and 2: for each group a list of slices, which its step lays end to end in fp32.

    Source: deepspeed/runtime/zero/stage_1_and_2.py, `step`, 0.19.8.
    """

    needs = (
        *("averaged_gradients", "single_partition_of_fp32_groups", "check_grad_overflow", "check_overflow"),
        *("scaled_global_norm", "unscale_and_clip_grads", "loss_scaler"),
    )

    def slices(self) -> list[Tensor]:
        """Slices of every group, without the padding between and behind them."""
        found: list[Tensor] = []
        for place, spans in enumerate(self._spans):
            real = [each for each in self._optimizer.averaged_gradients[place] if not hasattr(each, "_zero_padding")]
            found += real[: len(spans)]  # what is left is padding that carries no mark
        _check(found, self._spans)
        return found

    def _install(self) -> None:
        optimizer = self._optimizer
        optimizer.check_grad_overflow = True  # otherwise bf16 would not ask
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
    """ZeRO-1 and 2 with the optimizer on the host: flat fp32 gradients there, read there."""

    needs = (
        *PartitionedGradients.needs,
        *("set_norm_for_param_grad_in_gpu", "update_offload_overflow_tracker_for_param_grad"),
        *("update_offload_overflow_tracker", "_wait_for_offload_copies"),
    )

    def slices(self) -> list[Tensor]:
        """Parts of every flat gradient."""
        self._optimizer._wait_for_offload_copies()
        return self._of_owners()

    def _install(self) -> None:
        super()._install()
        # Stock asks each parameter's gradient for its norm and its overflow, with a wait for the device each time.
        self._optimizer.set_norm_for_param_grad_in_gpu = _nothing
        self._optimizer.update_offload_overflow_tracker_for_param_grad = _nothing
        self._optimizer.update_offload_overflow_tracker = _nothing


class Zero3Gradients(Gradients):
    """ZeRO-3: for each sub-group a list of this rank's pieces.

    Source: deepspeed/runtime/zero/stage3.py, `step`, 0.19.8.
    """

    needs = (
        *("averaged_gradients", "fp32_partitioned_groups_flat", "check_overflow", "_get_norm_groups"),
        *("unscale_and_clip_grads", "loss_scaler"),
    )

    def slices(self) -> list[Tensor]:
        """Pieces of every sub-group, without their padding; in whatever shape."""
        found: list[Tensor] = []
        for place, spans in enumerate(self._spans):
            pieces = self._optimizer.averaged_gradients[place]
            if place not in self._order:
                starts = accumulate((piece.numel() for piece in pieces), initial=0)
                index = {start: i for i, start in enumerate(starts)}
                self._order[place] = [index[span.start] for span in spans]
            for i, span in zip(self._order[place], spans, strict=True):
                piece = pieces[i]
                found.append(piece if piece.numel() == span.count else piece.view(-1).narrow(0, 0, span.count))
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
    """ZeRO-3 with the optimizer on the host: a flat fp32 gradient a sub-group there, read there."""

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
    """A gradient under another parameter's name would be worse than none."""
    expected = [span for shard in spans for span in shard]
    wrong = [
        span.name
        for span, tensor in zip(expected, found, strict=False)
        if tensor is None or tensor.numel() != span.count
    ]
    if wrong or len(found) != len(expected):
        raise RuntimeError(
            f"DeepSpeed's reduced gradients are not laid out as yolods knows them from 0.19.8 ({len(found)} of "
            f"{len(expected)} parts; first difference at {wrong[0] if wrong else 'the end'}); install the versions of "
            "constraints.txt"
        )


def gradients_of(optimizer: Any, spans: Sequence[Sequence[Span]], owners: Callable[[], Sequence[Tensor]]) -> Gradients:
    """The adapter of an optimizer that `deepspeed.initialize` returned.

    Raises:
        RuntimeError: this DeepSpeed lacks a method that the adapter replaces or an attribute that it reads.
    """
    offload = bool(getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False))
    kinds: dict[tuple[str, bool], type[Gradients]] = {
        ("DeepSpeedZeroOptimizer", False): PartitionedGradients,
        ("DeepSpeedZeroOptimizer", True): OffloadedGradients,
        ("DeepSpeedZeroOptimizer_Stage3", False): Zero3Gradients,
        ("DeepSpeedZeroOptimizer_Stage3", True): OffloadedZero3Gradients,
        ("BF16_Optimizer", False): Bf16Gradients,
        ("FP16_UnfusedOptimizer", False): UnfusedGradients,
    }
    kind = kinds.get((type(optimizer).__name__, offload))
    if kind is None and isinstance(optimizer, torch.optim.Optimizer):
        kind = PlainGradients
    missing = [] if kind is None else [name for name in kind.needs if not hasattr(optimizer, name)]
    if kind is None or missing:
        import deepspeed

        lacks = f" lacks {', '.join(missing)}" if missing else " is not known"
        raise RuntimeError(
            f"deepspeed {deepspeed.__version__}: {type(optimizer).__name__}{lacks}; yolods' overflow handling and "
            'clipping fit deepspeed 0.19.8. Install the versions of constraints.txt, or set "yolods": {"overflow": '
            '{"handling": "stock"}}'
        )
    return kind(optimizer, spans, owners)


ROW = 2**15
"""Most elements that are added up one after the other on a CPU, where a norm does so in fp32: in tensors of tens of
millions that was wrong by 0.65% (torch 2.13)."""
SMALL = 2**12
"""Elements of what is not worth a call of its own there."""
_multiplied = torch.ops.aten.native_batch_norm_backward.default


@torch.no_grad()
def squares(parts: Sequence[Tensor], places: Tensor, count: int) -> Tensor:
    """One pass: the sum of squares of every part, added up by parameter.

    A part whose norm is not finite makes its parameter's sum so: inf where it holds an inf, nan where a nan. A norm of
    more than 1.8e19, whose square fp32 cannot hold, counts as inf, too.

    Args:
        parts: this rank's slices, of any floating dtype.
        places: (len(parts),) int64, the parameter of each part; on the parts' device.
        count: parameters in all.

    Returns:
        (count,) fp32 on that device; nothing has waited for it.
    """
    totals = torch.zeros(count, device=places.device)
    if not parts:
        return totals
    if places.device.type == "cpu":
        found, which = _on_cpu(parts)
        return totals.index_add_(0, places[which], found)
    return totals.index_add_(0, places, torch.stack(torch._foreach_norm(parts, 2, dtype=torch.float32)).square_())


def _on_cpu(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(pieces,) fp32 sums of squares, and (pieces,) int64 the parts that they are of."""
    found, which, small, whose = [], [], [], []
    for place, part in enumerate(parts):
        flat, count = part.reshape(-1), part.numel()
        if count > SMALL:
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
    """(rows,) fp32: the sum of squares of every row of (rows, n).

    A norm on a CPU makes an fp32 copy of halves first, which takes longer than reading them. What multiplies halves
    without one and adds up in fp32 is the gradient of BatchNorm's weight: over each channel, the sum of the output's
    gradient times the input, less a mean of 0 and over a deviation of 1.
    """
    if rows.itemsize > 2:
        return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).square_()
    mean, deviation = _standard(len(rows))
    channels, only_weight = rows.unsqueeze(0), [False, True, False]
    return _multiplied(channels, channels, deviation, None, None, mean, deviation, True, 0.0, only_weight)[1]


@cache
def _standard(channels: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(channels), torch.ones(channels)
