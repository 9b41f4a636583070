"""The fp32 master weights in every kind of DeepSpeed optimizer, and how the model follows them.

Every ZeRO kind keeps the masters elsewhere and under another name, which only the classes here
know. The moving average, checkpoints, .pt files and the memory checks all use these classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yolods.device.host_copy import fill, host_copy, on_host, sent
from yolods.zero.shards import join_shards

GATHERED = 1 << 24
"""Elements that all ranks gather at once.

They take 64 MiB of a GPU, and the host waits once per 64 MiB of the model.
"""

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

    def whole(self, *, keep: bool) -> list[tuple[nn.Parameter, Tensor]]:
        """Every trained parameter with a copy of its whole fp32 value in host memory.

        A collective of the ranks that share the masters.

        Args:
            keep: whether this rank needs them; if not, it takes part and gets an empty list.
        """
        if not keep:
            return []
        parameters = [parameter for group in self.members() for parameter in group]
        return list(zip(parameters, host_copy(self.shards()), strict=True))

    def _gathered(self, keep: bool) -> list[tuple[nn.Parameter, Tensor]]:
        """Like `whole`, for partial shards: gather them and cut the parameters out."""
        group = self._optimizer.dp_process_group
        found: list[tuple[nn.Parameter, Tensor]] = []
        for members, shard in zip(self.members(), self.shards(), strict=True):
            parts = _gather(shard.view(-1), members[0].device, group, keep)
            if keep:
                shapes = [(str(place), full_shape(each)) for place, each in enumerate(members)]
                values = join_shards(self.kind, [shapes], [[part] for part in parts])
                found += [(each, values[str(place)]) for place, each in enumerate(members)]
        return found

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
            tensors = {key: value for key, value in saved.items() if isinstance(value, Tensor)}
            rooms = {
                # torch keeps counts, which have no dimension, on the host, unless a fused or
                # capturable kernel reads them on the GPU.
                key: _room(
                    held.get(key),
                    value,
                    torch.device("cpu") if value.ndim == 0 and counts_on_host else owner.device,
                )
                for key, value in tensors.items()
            }
            fill(rooms.values(), tensors.values())
            self.inner.state[owner] = {**saved, **rooms}


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

    def whole(self, *, keep: bool) -> list[tuple[nn.Parameter, Tensor]]:
        """Every parameter: this rank's own if that is fp32, otherwise gathered from the masters."""
        parameters = [parameter for group in self.members() for parameter in group]
        # fp32 parameters are exact copies of the masters, so nothing needs to be gathered.
        if any(parameter.dtype != torch.float32 for parameter in parameters):
            return self._gathered(keep)
        return (
            list(zip(parameters, host_copy([each.data for each in parameters]), strict=True))
            if keep
            else []
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

    def whole(self, *, keep: bool) -> list[tuple[nn.Parameter, Tensor]]:
        """Every parameter, gathered from the masters, because no rank holds a whole one."""
        return self._gathered(keep)

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
def _gather(
    shard: Tensor, device: torch.device, group: dist.ProcessGroup, keep: bool
) -> list[Tensor]:
    """The shards of all ranks of a group, in host memory; an empty list without `keep`.

    Args:
        shard: (n,) fp32, on the device of the masters.
        device: the device on which the backend gathers.
    """
    ranks = dist.get_world_size(group)
    whole = [torch.empty(len(shard)) for _ in range(ranks if keep else 0)]
    # In bounded pieces, so that gathering needs the same device memory for every model.
    count = max(GATHERED // ranks, 1)
    for start in range(0, len(shard), count):
        part = sent(shard[start : start + count], device)
        gathered = part.new_empty(ranks * len(part))
        dist.all_gather_into_tensor(gathered, part, group=group)
        if keep:
            (arrived,) = on_host(gathered)
            for row, piece in zip(whole, arrived.view(ranks, -1), strict=True):
                row[start : start + count] = piece
    return whole


@torch.no_grad()
def frozen_weights(frozen: Mapping[str, nn.Parameter], *, keep: bool) -> dict[str, Tensor]:
    """Whole fp32 values of parameters without a master, copied to host memory.

    A collective under ZeRO-3: all ranks call it, in the same order.

    Args:
        keep: as for `Masters.whole`.
    """
    from deepspeed.runtime.zero import GatheredParameters

    if not any(hasattr(each, "ds_id") for each in frozen.values()):
        return host_copy({name: each.float() for name, each in frozen.items()}) if keep else {}
    found = {}
    # One after the other, so that no GPU holds more than one whole parameter.
    for name, parameter in frozen.items():
        with GatheredParameters([parameter]):
            if keep:
                found[name] = host_copy(parameter.float())
    return found


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
