"""This rank's fp32 master weights, wherever DeepSpeed keeps them, and how the model is made to follow them.

Every ZeRO kind keeps masters elsewhere under another name. The classes here are the only code that knows; the EMA, the
weights written to .pt files and the checks on memory all go through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Masters(Protocol):
    """fp32 masters held by this rank."""

    def shards(self) -> Sequence[Tensor]:
        """The fp32 tensors, in a fixed order; writing into them changes the masters."""

    def publish(self) -> None:
        """Make the model's parameters follow the masters on every rank. A collective: all ranks call it."""


class PlainMasters:
    """fp32 without ZeRO: the parameters are the masters, whole on every rank."""

    needs = ()

    def __init__(self, optimizer: Any) -> None:
        self._groups = optimizer.param_groups

    def shards(self) -> Sequence[Tensor]:
        """All trainable parameters."""
        return [parameter.data for group in self._groups for parameter in group["params"]]

    def publish(self) -> None:
        """Nothing to do: they are the same tensors."""


class UnfusedMasters:
    """bf16 without ZeRO (`FP16_UnfusedOptimizer`): an fp32 copy of every parameter on every rank."""

    needs = ("fp32_groups", "fp16_groups")

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def shards(self) -> Sequence[Tensor]:
        """All fp32 copies."""
        return [master.data for group in self._optimizer.fp32_groups for master in group]

    @torch.no_grad()
    def publish(self) -> None:
        """Round every copy into its parameter."""
        for masters, weights in zip(self._optimizer.fp32_groups, self._optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                weight.data.copy_(master.data)


class PartitionedMasters:
    """ZeRO-1 and 2, with or without offload: one flat fp32 partition a parameter group."""

    needs = ("single_partition_of_fp32_groups", "update_lp_params")

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def shards(self) -> Sequence[Tensor]:
        """This rank's partition of every group, shape (numel / ranks,)."""
        return [partition.data for partition in self._optimizer.single_partition_of_fp32_groups]

    def publish(self) -> None:
        """Copy into this rank's slice of the model and gather the slices of the others."""
        self._optimizer.update_lp_params()


class Bf16Masters(PartitionedMasters):
    """ZeRO-1 in bf16 with fp32 gradient accumulation (`BF16_Optimizer`)."""

    needs = ("fp32_groups_flat_partition", "update_lp_params")

    def shards(self) -> Sequence[Tensor]:
        """This rank's partition of every group."""
        return [partition.data for partition in self._optimizer.fp32_groups_flat_partition]


class Zero3Masters:
    """ZeRO-3, with or without offload to the CPU: one flat fp32 tensor a sub-group of partitioned parameters."""

    needs = (
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "persistent_parameters",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
    )

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def shards(self) -> Sequence[Tensor]:
        """This rank's slice of every sub-group."""
        return [group.data for group in self._optimizer.fp32_partitioned_groups_flat]

    @torch.no_grad()
    def publish(self) -> None:
        """As the end of DeepSpeed's own step does: into the partitions, then gather what stays resident.

        Source: deepspeed/runtime/zero/stage3.py, `step` and `_post_step` (0.19.8).
        """
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        resident = optimizer.persistent_parameters
        if resident:
            resident[0].all_gather(resident)


def masters_of(optimizer: Any) -> Masters:
    """The masters of an optimizer that `deepspeed.initialize` returned.

    Raises:
        RuntimeError: this DeepSpeed keeps them in a way that is not known here.
    """
    kinds: dict[str, type] = {
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
    """The whole fp32 value of one parameter. A collective under ZeRO: all ranks call it, in the same order."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
    if value is not None:
        return value.detach()
    with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().float().clone()


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's shape; under ZeRO-3 the tensor itself may be empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
