"""The "yolods" block of a DeepSpeed JSON: settings that DeepSpeed has no word for.

A new group of settings is one frozen dataclass, whose fields carry their rules, and one field of `OwnConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from yolods.config.values import read_block, setting, whole
from yolods.errors import Faults


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When a resumable checkpoint is written, and how many are kept."""

    every_epochs: int = setting(1, whole(0))
    """Epochs from one checkpoint to the next; 0: none at the end of an epoch but the last."""
    every_steps: int = setting(0, whole(0))
    """Optimizer steps from one checkpoint to the next within an epoch; 0: none within an epoch."""
    keep: int = setting(2, whole(1))
    """How many of the newest checkpoints stay on disk."""


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """Everything under "yolods"."""

    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    """When checkpoints are written, and how many are kept."""

    def as_dict(self) -> dict[str, Any]:
        """The block with every default written out, as JSON takes it."""
        return asdict(self)


def read_own(block: Mapping[str, Any] | None, where: str, faults: Faults) -> OwnConfig:
    """Read the block; a missing one gives the defaults.

    Args:
        where: the file's name in messages.
    """
    return OwnConfig() if block is None else read_block(OwnConfig, block, f'{where}: "yolods"', faults)
