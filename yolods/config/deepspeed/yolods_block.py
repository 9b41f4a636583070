"""The "yolods" block of a DeepSpeed JSON: settings that DeepSpeed has no key for.

To add a group of settings, write a frozen dataclass whose fields carry their rules, and add a field
to `YolodsConfig`. The settings of clipping policies are declared with the policies, in
`yolods.clipping`.
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
    """Epochs between checkpoints; 0: only at the end of the last epoch."""
    every_steps: int = setting(0, whole(0))
    """Optimizer steps between checkpoints within an epoch; 0: none within an epoch."""
    keep: int = setting(2, whole(1))
    """Number of newest checkpoints to keep on disk."""
    keep_best: bool = setting(True, flag())
    """Whether the checkpoint of the best epoch is kept, too."""
    asynchronous: bool = setting(True, flag())
    """Whether training continues while a checkpoint is written from a copy in host memory."""


@dataclass(frozen=True, kw_only=True)
class ClippingConfig:
    """How gradients are clipped; names and settings come from the classes in `yolods.clipping`."""

    policy: str = "global_norm"
    """A name in `POLICIES`."""
    given: tuple[tuple[str, Any], ...] = ()
    """The settings that differ from their defaults, by key; a policy ignores those of the
    others."""

    @classmethod
    def read(cls, block: Any, where: str, faults: Faults) -> ClippingConfig:
        """Read the block; see `rules.read_block`."""
        rules = {
            key: rule for kind in POLICIES.values() for key, (_, rule) in settings_of(kind).items()
        }
        values = read_settings({"policy": one_of(*POLICIES), **rules}, block, where, faults)
        policy = values.pop("policy", cls.policy)
        defaults = cls._defaults()
        return cls(
            policy=policy,
            given=tuple((key, value) for key, value in values.items() if value != defaults[key]),
        )

    def as_dict(self) -> dict[str, Any]:
        """The block with every policy's settings written out."""
        return {"policy": self.policy, **self._defaults(), **dict(self.given)}

    @staticmethod
    def _defaults() -> dict[str, Any]:
        return {
            key: default
            for kind in POLICIES.values()
            for key, (default, _) in settings_of(kind).items()
        }


# Wide: one field for each key of the JSON's "overflow" block.
@dataclass(frozen=True, kw_only=True)
class OverflowConfig:
    """Handling of non-finite or spiking gradients and losses; see docs/stability.md."""

    handling: str = setting("own", one_of("own", "stock"))
    """`stock`: DeepSpeed's own clipping, loss scale and skipping, faults included, to compare."""
    attribution: str = setting("armed", one_of("off", "armed", "always"))
    """How the origin of a bad step is found: `armed` repeats the step with probes; `always` has
    probes in every step."""
    max_loss_scale: float = setting(2.0**24, real(1))
    """Upper limit of fp16's loss scale; the lower limit is DeepSpeed's `min_loss_scale`."""
    spike_ratio: float = setting(20.0, real(1, above=True))
    """A gradient norm this many times the usual one is a spike, and the step is skipped; `spike_z`
    must agree."""
    loss_spike_ratio: float = setting(5.0, real(1, above=True))
    """The same for the loss."""
    spike_z: float = setting(6.0, real(0, above=True))
    """A spike must also be this many standard deviations (of the logarithm) above the mean."""
    warmup_steps: int = setting(20, whole(2))
    """Steps to observe before anything counts as a spike."""
    vanishing: float = setting(1e-10, real(0))
    """A parameter is reported if its gradient norm stays below for `vanishing_steps`; 0: never."""
    vanishing_steps: int = setting(500, whole(1))
    """See `vanishing`."""
    patience: int = setting(5, whole(1))
    """Consecutive bad steps after which the run returns to its last snapshot; overflows that a
    smaller loss scale can fix do not count."""
    snapshot_steps: int = setting(100, whole(0))
    """Steps between snapshots in memory; 0: no snapshots, and `patience` ends the run."""
    max_rollbacks: int = setting(3, whole(0))
    """The run stops after so many roll-backs less than `snapshot_steps` good steps apart."""
    quarantine: int = setting(2, whole(0))
    """An image that caused non-finite values this many times is excluded for good; 0: never."""


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    """When a rank counts as lost, and when as stuck; described in docs/recovery.md."""

    enabled: bool = setting(True, flag())
    """Whether ranks watch each other."""
    silence_seconds: float = setting(7.0, real(3))
    """A rank that sends no heartbeat for this long is lost, and the run ends."""
    stall_seconds: float = setting(7.0, real(2))
    """A rank in one phase for this long, and ten times its longest so far, is named as stuck."""
    grace_seconds: float = setting(60.0, real(0))
    """Time from naming a stuck rank to ending the run."""
    slow_seconds: float = setting(1800.0, real(10))
    """Limit for new phases and slow ones: compiling, scanning a data set, drawing."""


@dataclass(frozen=True, kw_only=True)
class AccumulationConfig:
    """How ZeRO-2 treats the gradients of several micro-batches; described in docs/training.md."""

    reduce: str = setting("auto", one_of("auto", "step", "micro_batch"))
    """`step`: whole gradients are added up and reduced once. `micro_batch`: they are reduced after
    every backward pass, so that a rank never holds more than a bucket and its own part. `auto`:
    `step` where whole gradients take a small share of the device's memory."""


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How gradients are compressed between ranks; described in docs/training.md."""

    kind: str = setting("none", one_of("none", "powersgd"))
    """`powersgd`: as products of two thin matrices (https://arxiv.org/abs/1905.13727)."""
    rank: int = setting(4, whole(1, 64))
    """Columns of these matrices: more send more, and leave less for later steps."""
    min_saving: float = setting(2.0, real(1))
    """A gradient is compressed if its matrices have at most its elements divided by this."""


@dataclass(frozen=True, kw_only=True)
class YolodsConfig:
    """Everything under "yolods"."""

    clipping: ClippingConfig = field(default_factory=ClippingConfig)
    """How gradients are clipped."""
    overflow: OverflowConfig = field(default_factory=OverflowConfig)
    """What happens when numbers are not finite or spike."""
    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    """When checkpoints are written, and how many are kept."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """When a rank counts as lost or stuck."""
    accumulation: AccumulationConfig = field(default_factory=AccumulationConfig)
    """How often ZeRO-2 reduces gradients."""
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    """How gradients are compressed between ranks."""

    def as_dict(self) -> dict[str, Any]:
        """The block with every default written out, ready for JSON."""
        return {**asdict(self), "clipping": self.clipping.as_dict()}


def read_yolods_block(block: Mapping[str, Any] | None, where: str, faults: Faults) -> YolodsConfig:
    """Read the block; a missing one gives the defaults.

    Args:
        where: the file's name in messages.
    """
    return (
        YolodsConfig()
        if block is None
        else read_block(YolodsConfig, block, f'{where}: "yolods"', faults)
    )
