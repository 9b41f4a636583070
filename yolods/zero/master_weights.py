"""The fp32 master weights in every kind of DeepSpeed optimizer, and how the model follows them.

Every ZeRO kind keeps the masters elsewhere and under another name, which only the classes here
know. The moving average, checkpoints, .pt files and the memory checks all use these classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yolods.device.host_copy import fill, host_copy, on_host, sent
from yolods.device.stored import Stored
from yolods.zero.shards import ShardPart, locate

GATHERED = 1 << 24
"""Elements that all ranks gather at once. They take 64 MiB of a GPU."""

Kind = Literal["whole", "flat", "pieces"]
"""How shards are cut.

`whole`: a shard is one parameter, the same on all ranks. `flat`: a shard is this rank's equal part
of several parameters that are concatenated and padded. `pieces`: a shard concatenates this rank's
equal part of each of several parameters, each padded on its own.
"""


class Masters:
    """fp32 masters held by this rank."""

    kind: Kind
    """How the masters are cut into shards."""
    needs: tuple[str, ...] = ()
    """Attributes of DeepSpeed's optimizer that this class reads."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def owners(self) -> Sequence[Tensor]:
        """The fp32 tensors for which the inner optimizer holds its states, in a fixed order."""
        raise NotImplementedError

    def members(self) -> list[list[nn.Parameter]]:
        """The model's parameters in each shard, in the order of the shard."""
        raise NotImplementedError

    def publish(self) -> None:
        """Copy the masters into the model's parameters on every rank. A collective."""
        raise NotImplementedError

    def whole(self, parameter: nn.Parameter, *, keep: bool) -> Tensor | None:
        """A copy of a trained parameter's whole fp32 value in host memory.

        A collective of the ranks that share the masters.

        Args:
            keep: whether this rank needs it; if not, it takes part and gets None.
        """
        (place,) = self._places[id(parameter)]
        return host_copy(self.owners()[place.shard].data) if keep else None

    @cached_property
    def _places(self) -> dict[int, list[ShardPart]]:
        """The parts of every trained parameter, by the parameter's identity."""
        members = self.members()
        groups = [[(str(id(each)), full_shape(each)) for each in group] for group in members]
        sizes = [owner.numel() for owner in self.owners()]
        count = 1 if self.kind == "whole" else dist.get_world_size(self._group)
        return {int(name): found for name, found in locate(self.kind, groups, sizes, count).items()}

    @property
    def _group(self) -> dist.ProcessGroup:
        return self._optimizer.dp_process_group

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer that updates the masters."""
        return self._optimizer.optimizer

    def shards(self) -> list[Tensor]:
        """The fp32 tensors themselves; writing to them changes the masters."""
        return [owner.data for owner in self.owners()]

    def states(self) -> list[dict[str, Any]]:
        """The inner optimizer's state per shard: tensors of its shape, and numbers like `step`."""
        return [dict(self.inner.state.get(owner, {})) for owner in self.owners()]

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace the inner optimizer's states, reusing the memory of the present ones."""
        groups = self.inner.param_groups
        counts_on_host = not any(group.get("fused") or group.get("capturable") for group in groups)
        for owner, saved in zip(self.owners(), states, strict=True):
            held = self.inner.state.get(owner, {})
            tensors = {
                key: value for key, value in saved.items() if isinstance(value, Tensor | Stored)
            }
            rooms = {
                # torch keeps counts, which have no dimension, on the host, unless a fused or
                # capturable kernel reads them on the GPU.
                key: _room(
                    held.get(key),
                    like,
                    torch.device("cpu") if like.ndim == 0 and counts_on_host else owner.device,
                )
                for key, like in _likes(tensors)
            }
            fill(rooms.values(), tensors.values())
            self.inner.state[owner] = {**saved, **rooms}


def _likes(tensors: Mapping[str, Tensor | Stored]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the same shapes and dtypes, by name."""
    for name, tensor in tensors.items():
        yield name, tensor.like if isinstance(tensor, Stored) else tensor


def _room(held: Any, value: Tensor, device: torch.device) -> Tensor:
    """Memory for a tensor of a state.

    This is the present tensor if it fits, because DeepSpeed has views of it (`hp_mapping`);
    otherwise a new one on `device`.
    """
    if not isinstance(held, Tensor):
        return torch.empty_like(value, device=device)
    fits = held.shape == value.shape and held.dtype == value.dtype
    return held if fits else torch.empty_like(value, device=held.device)


class PlainMasters(Masters):
    """fp32 without ZeRO: the parameters are the masters, whole on every rank."""

    kind: Kind = "whole"

    def owners(self) -> Sequence[Tensor]:
        """All trainable parameters."""
        return [
            parameter for group in self._optimizer.param_groups for parameter in group["params"]
        ]

    def members(self) -> list[list[nn.Parameter]]:
        """One list per parameter."""
        return [[owner] for owner in self.owners()]

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer itself, which wraps no other."""
        return self._optimizer

    def publish(self) -> None:
        """Do nothing: masters and parameters are the same tensors."""


class UnfusedMasters(Masters):
    """bf16 without ZeRO (`FP16_UnfusedOptimizer`): each rank has fp32 copies of all parameters."""

    kind: Kind = "whole"
    needs = ("fp32_groups", "fp16_groups")

    def owners(self) -> Sequence[Tensor]:
        """All fp32 copies."""
        return [master for group in self._optimizer.fp32_groups for master in group]

    def members(self) -> list[list[nn.Parameter]]:
        """One list per parameter."""
        return [[weight] for group in self._optimizer.fp16_groups for weight in group]

    @torch.no_grad()
    def publish(self) -> None:
        """Round every copy into its parameter."""
        for master, (weight,) in zip(self.owners(), self.members(), strict=True):
            weight.data.copy_(master.data)


class PartitionedMasters(Masters):
    """ZeRO-1 and 2, with or without offload: one flat fp32 partition per parameter group."""

    kind: Kind = "flat"
    needs = ("single_partition_of_fp32_groups", "round_robin_bit16_groups", "update_lp_params")

    def owners(self) -> Sequence[Tensor]:
        """This rank's partition of every group, shape (numel / ranks,)."""
        return self._optimizer.single_partition_of_fp32_groups

    def members(self) -> list[list[nn.Parameter]]:
        """Parameters in the order of the flat buffers, which `round_robin_gradients` changes."""
        return self._optimizer.round_robin_bit16_groups

    def whole(self, parameter: nn.Parameter, *, keep: bool) -> Tensor | None:
        """This rank's own value if that is fp32; otherwise it is sent by those that hold it."""
        # fp32 parameters are exact copies of the masters, so nothing needs to be sent.
        if parameter.dtype == torch.float32:
            return host_copy(parameter.data) if keep else None
        return _sent_whole(
            parameter, self._places[id(parameter)], self.owners(), self._group, keep=keep
        )

    def publish(self) -> None:
        """Copy the masters into this rank's slice of the model and gather the other slices."""
        self._optimizer.update_lp_params()


class Bf16Masters(PartitionedMasters):
    """ZeRO-1 in bf16 with fp32 gradient accumulation (`BF16_Optimizer`)."""

    needs = ("fp32_groups_flat_partition", "bf16_groups", "update_lp_params")

    def owners(self) -> Sequence[Tensor]:
        """This rank's partition of every group."""
        return self._optimizer.fp32_groups_flat_partition

    def members(self) -> list[list[nn.Parameter]]:
        """Parameters in the order of the flat buffers."""
        return self._optimizer.bf16_groups


class Zero3Masters(Masters):
    """ZeRO-3, with or without offload to the CPU: one flat fp32 tensor per sub-group."""

    kind: Kind = "pieces"
    needs = (
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "persistent_parameters",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
        "invalidate_secondary_tensor",
    )

    def owners(self) -> Sequence[Tensor]:
        """This rank's slice of every sub-group."""
        return self._optimizer.fp32_partitioned_groups_flat

    def members(self) -> list[list[nn.Parameter]]:
        """Parameters of every sub-group."""
        return self._optimizer.fp16_groups

    def whole(self, parameter: nn.Parameter, *, keep: bool) -> Tensor | None:
        """The value, gathered from the masters, because no rank holds it."""
        first = self._places[id(parameter)][0]
        return _gathered(parameter, first, self.owners()[first.shard], self._group, keep=keep)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the partitions and gather the parameters that stay resident.

        This repeats the end of DeepSpeed's own step. With `zero_hpz_partition_size` a parameter has
        a second, wider partition from which later passes gather it. That partition still holds the
        old weights; invalidating it makes DeepSpeed cut it again after the next pass.
        Source: deepspeed/runtime/zero/stage3.py, `step` and `_post_step` (0.19.8).
        """
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.invalidate_secondary_tensor()
        resident = optimizer.persistent_parameters
        if resident:
            resident[0].all_gather(resident)


def masters_of(optimizer: Any) -> Masters:
    """The masters of an optimizer that `deepspeed.initialize` returned.

    Raises:
        RuntimeError: this DeepSpeed stores them in an unknown way.
    """
    kinds: dict[str, type[Masters]] = {
        "DeepSpeedZeroOptimizer": PartitionedMasters,
        "DeepSpeedZeroOptimizer_Stage3": Zero3Masters,
        "BF16_Optimizer": Bf16Masters,
        "FP16_UnfusedOptimizer": UnfusedMasters,
    }
    kind = kinds.get(type(optimizer).__name__)
    if kind is None and isinstance(optimizer, torch.optim.Optimizer):
        kind = PlainMasters
    missing = [] if kind is None else [name for name in kind.needs if not hasattr(optimizer, name)]
    if kind is None or missing:
        import deepspeed

        lacks = f" lacks {', '.join(missing)}" if missing else " is not supported"
        raise RuntimeError(
            f"deepspeed {deepspeed.__version__}: {type(optimizer).__name__}{lacks}; yolods reads "
            "the fp32 master weights of deepspeed 0.19.8. Install the versions of constraints.txt"
        )
    return kind(optimizer)


@torch.no_grad()
def _sent_whole(
    parameter: nn.Parameter,
    parts: Sequence[ShardPart],
    owners: Sequence[Tensor],
    group: dist.ProcessGroup,
    *,
    keep: bool,
) -> Tensor | None:
    """A parameter's whole value out of consecutive parts, each sent by the rank that holds it.

    Args:
        owners: this rank's shards in the order of `Masters.owners`; under offload in host memory.
        keep: as for `Masters.whole`.
    """
    whole = torch.empty(full_shape(parameter)) if keep else None
    rest = None if whole is None else whole.view(-1)
    mine = dist.get_rank(group)
    for part in parts:
        # In bounded pieces, so that sending needs the same device memory for every model.
        for start in range(0, part.count, GATHERED):
            count = min(GATHERED, part.count - start)
            if part.rank == mine:
                held = owners[part.shard].data.view(-1).narrow(0, part.start + start, count)
                piece = sent(held, parameter.device)
            else:
                piece = torch.empty(count, device=parameter.device)
            source = dist.get_global_rank(group, part.rank)
            dist.broadcast(piece, source, group=group)
            if rest is not None:
                (arrived,) = on_host(piece)
                rest[:count] = arrived
                rest = rest[count:]
    return whole


@torch.no_grad()
def _gathered(
    parameter: nn.Parameter,
    first: ShardPart,
    owner: Tensor,
    group: dist.ProcessGroup,
    *,
    keep: bool,
) -> Tensor | None:
    """A parameter's whole value, of which every rank holds an equal piece at the same place.

    Args:
        first: the first rank's piece.
        owner: this rank's shard with its piece; under offload in host memory.
        keep: as for `Masters.whole`.
    """
    shape, ranks = full_shape(parameter), dist.get_world_size(group)
    length = math.ceil(shape.numel() / ranks)
    shard = owner.data.view(-1).narrow(0, first.start, length)
    whole = torch.empty(ranks, length) if keep else None
    # In bounded pieces, so that gathering needs the same device memory for every model.
    count = max(GATHERED // ranks, 1)
    for start in range(0, length, count):
        part = sent(shard[start : start + count], parameter.device)
        gathered = part.new_empty(ranks * len(part))
        dist.all_gather_into_tensor(gathered, part, group=group)
        if whole is not None:
            (arrived,) = on_host(gathered)
            whole[:, start : start + count] = arrived.view(ranks, -1)
    # All pieces have the same length, so the last one may end in padding.
    return None if whole is None else whole.view(-1)[: shape.numel()].view(shape)


@torch.no_grad()
def frozen_weight(parameter: nn.Parameter, *, keep: bool) -> Tensor | None:
    """The whole fp32 value of a parameter without a master, copied to host memory.

    A collective under ZeRO-3.

    Args:
        keep: as for `Masters.whole`.
    """
    from deepspeed.runtime.zero import GatheredParameters

    if not hasattr(parameter, "ds_id"):
        return host_copy(parameter.float()) if keep else None
    with GatheredParameters([parameter]):
        return host_copy(parameter.float()) if keep else None


@torch.no_grad()
def set_parameter(parameter: nn.Parameter, value: Tensor) -> None:
    """Set the value of a frozen parameter, which has no master. A collective under ZeRO-3."""
    from deepspeed.runtime.zero import GatheredParameters

    # On exit DeepSpeed broadcasts rank 0's value and partitions the parameter again.
    with GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
        if parameter.numel():
            fill([parameter.data], [value])


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's shape; under ZeRO-3 the tensor itself may be empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
