"""This rank's fp32 master weights, wherever DeepSpeed keeps them, and how the model is made to follow them.

Every ZeRO kind keeps masters elsewhere under another name. The classes here are the only code that knows; the moving
average, checkpoints, the weights written to .pt files and the checks on memory all go through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Kind = Literal["whole", "flat", "pieces"]
"""How shards are cut: `whole`: a shard is one parameter, alike on all ranks. `flat`: a shard is this rank's equal part
of several parameters laid end to end and padded. `pieces`: this rank's equal part of each of several parameters, each
padded, laid end to end."""


class Masters:
    """fp32 masters held by this rank."""

    kind: Kind
    """How they are cut."""
    needs: tuple[str, ...] = ()
    """Attributes of DeepSpeed's optimizer that this reads."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def owners(self) -> Sequence[Tensor]:
        """The fp32 tensors that the inner optimizer holds its states for, in a fixed order."""
        raise NotImplementedError

    def members(self) -> list[list[nn.Parameter]]:
        """The model's parameters in each shard, in the order in which they lie in it."""
        raise NotImplementedError

    def publish(self) -> None:
        """Make the model's parameters follow the masters on every rank. A collective: all ranks call it."""
        raise NotImplementedError

    def full(self, parameter: nn.Parameter) -> Tensor:
        """A copy of the whole fp32 value of one of the model's parameters. A collective: all ranks call it, in the same
        order."""
        return full_parameter(parameter)

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer that steps the masters."""
        return self._optimizer.optimizer

    def shards(self) -> list[Tensor]:
        """The fp32 tensors themselves; writing into them changes the masters."""
        return [owner.data for owner in self.owners()]

    def states(self) -> list[dict[str, Any]]:
        """The inner optimizer's state of each shard: tensors of the shard's shape, and numbers such as `step`."""
        return [dict(self.inner.state.get(owner, {})) for owner in self.owners()]

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Give the inner optimizer other states, on the devices where it keeps them."""
        fused = any(group.get("fused") for group in self.inner.param_groups)
        for owner, saved in zip(self.owners(), states, strict=True):
            held = self.inner.state.get(owner, {})
            self.inner.state[owner] = {key: _placed(key, value, owner, held, fused) for key, value in saved.items()}


def _placed(key: str, value: Any, owner: Tensor, held: dict[str, Any], fused: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key != "step":
        return value.to(owner.device, copy=True)
    # torch keeps step counts on the host, unless its kernel is fused.
    device = held[key].device if isinstance(held.get(key), Tensor) else owner.device if fused else "cpu"
    return value.to(device, copy=True)


class PlainMasters(Masters):
    """fp32 without ZeRO: the parameters are the masters, whole on every rank."""

    kind: Kind = "whole"

    def owners(self) -> Sequence[Tensor]:
        """All trainable parameters."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def members(self) -> list[list[nn.Parameter]]:
        """Each by itself."""
        return [[owner] for owner in self.owners()]

    @property
    def inner(self) -> torch.optim.Optimizer:
        """There is no other."""
        return self._optimizer

    def publish(self) -> None:
        """Nothing to do: they are the same tensors."""


class UnfusedMasters(Masters):
    """bf16 without ZeRO (`FP16_UnfusedOptimizer`): an fp32 copy of every parameter on every rank."""

    kind: Kind = "whole"
    needs = ("fp32_groups", "fp16_groups")

    def owners(self) -> Sequence[Tensor]:
        """All fp32 copies."""
        return [master for group in self._optimizer.fp32_groups for master in group]

    def members(self) -> list[list[nn.Parameter]]:
        """Each by itself."""
        return [[weight] for group in self._optimizer.fp16_groups for weight in group]

    def full(self, parameter: nn.Parameter) -> Tensor:
        """The copy, of which DeepSpeed does not know."""
        copies = {id(weight): owner for owner, (weight,) in zip(self.owners(), self.members(), strict=True)}
        return copies[id(parameter)].detach().clone() if id(parameter) in copies else full_parameter(parameter)

    @torch.no_grad()
    def publish(self) -> None:
        """Round every copy into its parameter."""
        for master, (weight,) in zip(self.owners(), self.members(), strict=True):
            weight.data.copy_(master.data)


class PartitionedMasters(Masters):
    """ZeRO-1 and 2, with or without offload: one flat fp32 partition a parameter group."""

    kind: Kind = "flat"
    needs = ("single_partition_of_fp32_groups", "round_robin_bit16_groups", "update_lp_params")

    def owners(self) -> Sequence[Tensor]:
        """This rank's partition of every group, shape (numel / ranks,)."""
        return self._optimizer.single_partition_of_fp32_groups

    def members(self) -> list[list[nn.Parameter]]:
        """Parameters as the flat buffers hold them, which `round_robin_gradients` reorders."""
        return self._optimizer.round_robin_bit16_groups

    def full(self, parameter: nn.Parameter) -> Tensor:
        """Every rank has the whole parameter; where that is rounded, the pieces of its master are added up.

        DeepSpeed's own `safe_get_full_fp32_param` (0.19.8) looks for them in the order before `round_robin_gradients`.
        """
        if parameter.dtype == torch.float32 or not parameter.requires_grad:
            return full_parameter(parameter)
        place, start = self._place(parameter)
        shard, rank = self.shards()[place], dist.get_rank(self._optimizer.dp_process_group)
        first = rank * shard.numel() - start  # where the shard begins, counted from where the parameter does
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=shard.device)
        begin, end = max(first, 0), min(first + shard.numel(), whole.numel())
        if begin < end:
            whole[begin:end] = shard[begin - first : end - first]
        whole = whole.to(parameter.device)
        dist.all_reduce(whole, group=self._optimizer.dp_process_group)
        return whole.view(parameter.shape)

    def _place(self, parameter: nn.Parameter) -> tuple[int, int]:
        """The group that a parameter is in, and its first element's place in the group laid end to end."""
        for place, group in enumerate(self.members()):
            start = 0
            for member in group:
                if member is parameter:
                    return place, start
                start += member.numel()
        raise KeyError("not a trained parameter of this model")

    def publish(self) -> None:
        """Copy into this rank's slice of the model and gather the slices of the others."""
        self._optimizer.update_lp_params()


class Bf16Masters(PartitionedMasters):
    """ZeRO-1 in bf16 with fp32 gradient accumulation (`BF16_Optimizer`)."""

    needs = ("fp32_groups_flat_partition", "bf16_groups", "update_lp_params")

    def owners(self) -> Sequence[Tensor]:
        """This rank's partition of every group."""
        return self._optimizer.fp32_groups_flat_partition

    def members(self) -> list[list[nn.Parameter]]:
        """Parameters as the flat buffers hold them."""
        return self._optimizer.bf16_groups


class Zero3Masters(Masters):
    """ZeRO-3, with or without offload to the CPU: one flat fp32 tensor a sub-group of partitioned parameters."""

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

    @torch.no_grad()
    def publish(self) -> None:
        """As the end of DeepSpeed's own step does: into the partitions, then gather what stays resident.

        With `zero_hpz_partition_size` a parameter has a second, wider partition, from which later passes gather it:
        that one is of the weights before, and is cut anew after the next pass.
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
        RuntimeError: this DeepSpeed keeps them in a way that is not known here.
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

        lacks = f" lacks {', '.join(missing)}" if missing else " is not known"
        raise RuntimeError(
            f"deepspeed {deepspeed.__version__}: {type(optimizer).__name__}{lacks}; yolods finds fp32 master weights "
            "in deepspeed 0.19.8's optimizers. Install the versions of constraints.txt"
        )
    return kind(optimizer)


def full_parameter(parameter: nn.Parameter) -> Tensor:
    """A copy of one parameter's whole fp32 value: of its master under ZeRO-3, else as the parameter has it.

    A collective under ZeRO-3: all ranks call it, in the same order.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if hasattr(parameter, "ds_id") and parameter.requires_grad:
        return safe_get_full_fp32_param(parameter).detach()
    with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().float().clone()


@torch.no_grad()
def set_parameter(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a frozen parameter, which has no master, a value. A collective under ZeRO-3."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
        if parameter.numel():
            parameter.data.copy_(value)


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's shape; under ZeRO-3 the tensor itself may be empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
