"""The "yolods" block of a DeepSpeed JSON: settings that DeepSpeed has no word for.

A new group of settings is one frozen dataclass, whose fields carry their rules, and one field of `YolodsConfig`. Those
of the clipping policies stand with the policies, in `yolods.clipping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from yolods.clipping.policy import POLICIES, settings_of
from yolods.errors import Faults
from yolods.parsing.rules import flag, one_of, read_block, read_settings, real, setting, whole


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When a resumable checkpoint is written, and how many are kept."""

    every_epochs: int = setting(1, whole(0))
    """Epochs from one checkpoint to the next; 0: none at the end of an epoch but the last."""
    every_steps: int = setting(0, whole(0))
    """Optimizer steps from one checkpoint to the next within an epoch; 0: none within an epoch."""
    keep: int = setting(2, whole(1))
    """How many of the newest checkpoints stay on disk."""
    keep_best: bool = setting(True, flag())
    """Whether the checkpoint of the best epoch stays beside them."""
    asynchronous: bool = setting(True, flag())
    """Whether training goes on while a checkpoint is written, from a copy in host memory."""


@dataclass(frozen=True, kw_only=True)
class ClippingConfig:
    """How gradients are cut back. Names and settings are those that the classes in `yolods.clipping` declare."""

    policy: str = "global_norm"
    """Which of `POLICIES`."""
    given: tuple[tuple[str, Any], ...] = ()
    """Settings that the block gives, by key; a policy passes over those of the others."""

    @classmethod
    def read(cls, block: Any, where: str, faults: Faults) -> ClippingConfig:
        """Read the block; see `values.read_block`."""
        rules = {key: rule for kind in POLICIES.values() for key, (_, rule) in settings_of(kind).items()}
        values = read_settings({"policy": one_of(*POLICIES), **rules}, block, where, faults)
        policy = values.pop("policy", cls.policy)
        return cls(policy=policy, given=tuple(values.items()))

    def as_dict(self) -> dict[str, Any]:
        """The block with every policy's settings written out."""
        defaults = {key: default for kind in POLICIES.values() for key, (default, _) in settings_of(kind).items()}
        return {"policy": self.policy, **defaults, **dict(self.given)}


# Wide: a field for each key of the JSON's "overflow" block.
@dataclass(frozen=True, kw_only=True)
class OverflowConfig:
    """What happens when gradients or losses go bad; docs/stability.md tells it as a story."""

    handling: str = setting("own", one_of("own", "stock"))
    """`stock`: DeepSpeed's own clipping, loss scale and skipping, faults included, for comparison."""
    attribution: str = setting("armed", one_of("off", "armed", "always"))
    """Who is named: `armed` runs a bad step a second time with probes; `always` has them on in every step."""
    max_loss_scale: float = setting(2.0**24, real(1))
    """fp16's ceiling; the floor is DeepSpeed's `min_loss_scale`."""
    spike_ratio: float = setting(20.0, real(1, above=True))
    """A gradient norm this many times its usual one is a spike, and the step is skipped; see `spike_z`, too."""
    loss_spike_ratio: float = setting(5.0, real(1, above=True))
    """The same for the loss."""
    spike_z: float = setting(6.0, real(0, above=True))
    """Standard deviations (of the logarithm) that a spike has to stand out by as well."""
    warmup_steps: int = setting(20, whole(2))
    """Steps that are looked at before anything counts as a spike."""
    vanishing: float = setting(1e-10, real(0))
    """A parameter whose gradient norm stays below this for `vanishing_steps` is reported; 0: none is."""
    vanishing_steps: int = setting(500, whole(1))
    """See `vanishing`."""
    patience: int = setting(5, whole(1))
    """Bad steps in a row after which the run goes back to its last snapshot; overflows that a smaller loss scale can
    mend do not count."""
    snapshot_steps: int = setting(100, whole(0))
    """Steps from one snapshot in memory to the next; 0: none is taken, and `patience` ends the run."""
    max_rollbacks: int = setting(3, whole(0))
    """Roll-backs, with fewer than `snapshot_steps` good steps between them, after which the run stops."""
    quarantine: int = setting(2, whole(0))
    """Times that an image may be found not to be finite before it is left out for good; 0: it never is."""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """When a rank counts as lost, and when as stuck; docs/recovery.md tells it as a story."""

    enabled: bool = setting(True, flag())
    """Whether ranks watch each other."""
    silence_seconds: float = setting(7.0, real(3))
    """Without a sign of life for so long, a rank is lost and the run ends."""
    stall_seconds: float = setting(7.0, real(2))
    """A rank that stays in one phase for so long, and ten times as long as it ever did, is named."""
    grace_seconds: float = setting(60.0, real(0))
    """And the run ends after so much longer."""
    slow_seconds: float = setting(1800.0, real(10))
    """What phases may take that are new, or known to be slow: compiling, scanning a data set, drawing."""


@dataclass(frozen=True, kw_only=True)
class YolodsConfig:
    """Everything under "yolods"."""

    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    """How gradients are cut back."""
    overflow: OverflowConfig = field(default_factory=OverflowConfig)
    """What happens when numbers go bad."""
    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    """When checkpoints are written, and how many are kept."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """When a rank counts as lost or stuck."""

    def as_dict(self) -> dict[str, Any]:
        """The block with every default written out, as JSON takes it."""
        return {**asdict(self), "clipping": self.clipping.as_dict()}


def read_yolods_block(block: Mapping[str, Any] | None, where: str, faults: Faults) -> YolodsConfig:
    """Read the block; a missing one gives the defaults.

    Args:
        where: the file's name in messages.
    """
    return YolodsConfig() if block is None else read_block(YolodsConfig, block, f'{where}: "yolods"', faults)
