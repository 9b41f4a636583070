"""What a rank trains: describes it, saves it, restores it, and hands the whole model over tensor by
tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from yolods.compression.powersgd import PowerSgd
from yolods.device.host_copy import fill, host_copy
from yolods.device.stored import Stored
from yolods.distributed.world import Ranks, Share
from yolods.engine.snapshots import Snapshots
from yolods.errors import UserError
from yolods.optim.ema import ShardedEma
from yolods.stability.controller import Stability, StockStability
from yolods.system.allocator import trim_before
from yolods.zero.master_weights import Masters, frozen_weight, full_shape, set_parameter
from yolods.zero.shards import fill_shard, misfits

COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
"""DeepSpeed's own counters, which its timers and logs use."""


class TrainingState:
    """What this rank trains and saves.

    Contains its shards of masters, optimizer state and moving average, its BatchNorm statistics,
    and its step checker.

    All methods are collectives unless they say otherwise.
    """

    def __init__(
        self,
        deepspeed: Any,
        masters: Masters,
        ema: ShardedEma,
        stability: Stability | StockStability,
        ranks: Ranks,
        share: Share,
        compression: PowerSgd | None = None,
        *,
        snapshot_steps: int,
    ) -> None:
        """
        Args:
            deepspeed: the DeepSpeedEngine.
            share: this replica's share of the data.
            compression: what averages the gradients; None: DeepSpeed, which remembers nothing.
            snapshot_steps: applied steps between two snapshots in memory; 0 for none.
        """
        self.deepspeed, self.masters, self.ema = deepspeed, masters, ema
        self.stability, self.ranks, self.share = stability, ranks, share
        self.compression = compression
        self.snapshots = Snapshots(
            self.statistics, self._moving, every=snapshot_steps, restores=stability.restores
        )

    @property
    def net(self) -> nn.Module:
        """The wrapped model or stage; under ZeRO-3 its parameters are partitioned."""
        return self.deepspeed.module

    def statistics(self) -> list[Tensor]:
        """Running statistics of the live model: its floating-point buffers, in a fixed order.

        Local.
        """
        return [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]

    def describe(self) -> dict[str, Any]:
        """What this rank's shards contain, so that they can be joined without this engine. Local.

        `groups` has for each parameter group, of which a rank has one shard, a list of (name,
        shape) in the order of the shard; `statistics` has the names of the floating-point buffers.
        """
        # Optimizers hold parameters without names, so they are matched by identity.
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        return {
            "groups": [
                [(names[id(p)], list(full_shape(p))) for p in group]
                for group in self.masters.members()
            ],
            "statistics": [
                name for name, buffer in self.net.named_buffers() if buffer.is_floating_point()
            ],
        }

    def layout(self) -> dict[str, Any]:
        """The sharding over all ranks: kind, every stage's shards, every rank's place."""
        return {
            "kind": self.masters.kind,
            "stages": [self.describe()],
            "places": [[0, rank] for rank in range(self.ranks.size)],
        }

    def _moving(self) -> dict[str, Any]:
        """What a step changes on this rank. Local."""
        return {
            "masters": self.masters.shards(),
            "optimizer": self.masters.states(),
            "ema": self.ema.state_dict(),
            "statistics": self.statistics(),
            "counts": dict(self._counts()),
            "compression": {} if self.compression is None else self.compression.state(),
        }

    def state(self) -> dict[str, Any]:
        """Everything of this rank that a resume needs.

        A collective, because of the frozen weights.
        """
        return {
            **self._moving(),
            "frozen": self._frozen_weights(),
            "stability": self.stability.state(),
            **self.snapshots.state(),
            "counters": {key: getattr(self.deepspeed, key) for key in COUNTERS},
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, or a checkpoint cut to this rank's shards. A collective.

        Args:
            state: its tensors are in memory or stored.

        Raises:
            UserError: the state has other frozen layers than this model.
        """
        frozen = [
            (name, full_shape(p)) for name, p in self.net.named_parameters() if not p.requires_grad
        ]
        # Only ranks that save their stage's weights have frozen ones in their state.
        shapes = {name: value.shape for name, value in state["frozen"].items()}
        if shapes and (wrong := misfits([frozen], shapes)):
            raise UserError(
                f"the state belongs to another model, or to other frozen layers: {wrong[0]}"
            )
        for name, parameter in self.net.named_parameters():
            if not parameter.requires_grad and name in state["frozen"]:
                set_parameter(parameter, state["frozen"][name])
        self._load_moving(state)
        self.stability.load(state["stability"])
        for key, value in state["counters"].items():
            setattr(self.deepspeed, key, value)
        self.snapshots.load(state)

    @torch.no_grad()
    def _load_moving(self, state: dict[str, Any]) -> None:
        shards = self.masters.shards()
        fill(
            shards,
            [saved.view_as(shard) for saved, shard in zip(state["masters"], shards, strict=True)],
        )
        self.masters.load_states(
            [_shaped(each, shard) for each, shard in zip(state["optimizer"], shards, strict=True)]
        )
        fill(self.statistics(), state["statistics"])
        counts = dict(self._counts())
        fill(counts.values(), [state["counts"][name] for name in counts])
        self.ema.load_state_dict(state["ema"])
        if self.compression is not None:
            # Missing in the checkpoint of a run without compression.
            self.compression.load(state.get("compression") or {})
        # Last, because the model's own weights follow the masters that were filled above.
        self.masters.publish()

    @torch.no_grad()
    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a whole model's weights and running statistics for evaluation.

        The optimizer state and the moving average do not change.

        Args:
            weights: a state_dict, on every rank. Each tensor is asked for when it is needed, so
                that a mapping can read it from a file.

        Raises:
            ValueError: a tensor has another shape than in this model.
        """
        mine, kind = self.describe(), self.masters.kind
        for group, shard in zip(mine["groups"], self.masters.shards(), strict=True):
            fill_shard(
                kind, group, shard, weights.__getitem__, self.share.dp_rank, self.share.dp_size
            )
        fill(self.statistics(), [weights[name] for name in mine["statistics"]])
        for name, parameter in self.net.named_parameters():
            if not parameter.requires_grad:
                set_parameter(parameter, weights[name])
        self.masters.publish()

    def _counts(self) -> Iterator[tuple[str, Tensor]]:
        """BatchNorm's batch counters.

        Nothing here reads them, but every .pt contains them. Local.
        """
        return (
            (name, buffer)
            for name, buffer in self.net.named_buffers()
            if not buffer.is_floating_point()
        )

    def _frozen_weights(self) -> dict[str, Tensor]:
        """Frozen parameters, fp32 on the CPU, on the ranks that save their stage's weights."""
        keep = self._hands_over()
        found = {
            # All ranks gather them, and in the same order.
            name: frozen_weight(each, keep=keep)
            for name, each in self.net.named_parameters()
            if not each.requires_grad
        }
        return {name: value for name, value in found.items() if value is not None}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole model's state_dict, tensor by tensor: on rank 0 fp32 copies on the CPU.

        No rank ever holds more than one whole tensor, if the caller keeps none. Every rank has to
        exhaust the iterator; on ranks other than 0 it yields nothing. The weights must not change
        meanwhile.
        """
        return self._collect(_leaves(self.net, self.masters, keep=self._hands_over()))

    def _hands_over(self) -> bool:
        """Whether this rank's copy of its weights is the one that is saved."""
        return self.ranks.is_main

    def _collect(self, leaves: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Bring the tensors of all stages to rank 0."""
        return leaves


@torch.no_grad()
def _leaves(net: nn.Module, masters: Masters, *, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """A stage's tensors, on ranks that save its weights; the others take part."""
    for name, parameter in net.named_parameters():
        whole = masters.whole if parameter.requires_grad else frozen_weight
        trim_before(4 * full_shape(parameter).numel())
        value = whole(parameter, keep=keep)
        if value is not None:
            yield name, value
        del value  # not held while the next one is gathered
    if keep:
        yield from ((name, host_copy(each)) for name, each in net.named_buffers())


def _shaped(state: dict[str, Any], shard: Tensor) -> dict[str, Any]:
    """A shard's optimizer state with its moments in the shape of the shard; counts unchanged."""
    return {
        # A count has one element, and so may a shard: then the value keeps its shape.
        key: value.view_as(shard)
        if isinstance(value, Tensor | Stored) and value.numel() == shard.numel() > 1
        else value
        for key, value in state.items()
    }
