"""Reads a DeepSpeed JSON: checks keys and combinations, and computes batch sizes.

Settings that DeepSpeed accepts and silently computes wrongly (see `_check_precision`) are refused
by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolods.clipping.policy import POLICIES
from yolods.config.deepspeed.batch import (
    ACCUMULATION,
    DEFAULT_BATCH,
    MICRO,
    TRAIN,
    BatchPlan,
    plan_batches,
)
from yolods.config.deepspeed.fp16 import Fp16Config, read_fp16
from yolods.config.deepspeed.keys import check_keys
from yolods.config.deepspeed.limits import JsonSettings, check_limits
from yolods.config.deepspeed.pipeline import (
    PipelineConfig,
    check_pipeline_zero,
    read_pipeline,
    replicas,
)
from yolods.config.deepspeed.recompute import RecomputeConfig, read_recompute
from yolods.config.deepspeed.timers import resolved_timers, timer_costs
from yolods.config.deepspeed.unused_keys import OFF, UNUSED, unused_keys
from yolods.config.deepspeed.yolods_block import YolodsConfig, read_yolods_block
from yolods.config.hyper.hyperparameters import Hyper
from yolods.config.names.recipes import find_json
from yolods.config.optimizers.json_block import JsonOptimizer, read_optimizer
from yolods.config.reducing import ReductionConfig, read_reduction
from yolods.errors import Faults
from yolods.parsing.json_file import read_json

MAX_NORM = 10.0
"""Default of "gradient_clipping": the global gradient norm at which ultralytics clips, too."""

DEFAULT_JSON: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": MAX_NORM,
    "zero_optimization": {"stage": 1},
}
"""The configuration without --deepspeed_config: the same as ds_configs/zero1_fp32.json."""

_DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "half", "torch.float16"), "fp16"),
}
OURS = ("yolods", "pipeline", "optimizer", "activation_checkpointing")
"""Blocks that yolods implements itself; DeepSpeed never sees them."""
_NO_CPU_FP16 = "the CPU backend has no fp16; use bf16 or fp32"


# Wide: one field for each setting that DeepSpeed's JSON decides.
@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """A run's DeepSpeed configuration, fully resolved."""

    path: Path | None
    """The JSON's path; None: the built-in default."""
    text: str
    """The JSON as given, on one canonical line. A string keeps the frozen object immutable."""
    resolved: str
    """JSON for `deepspeed.initialize`, on one canonical line; see `for_initialize`."""
    zero_stage: int
    """0 to 3."""
    precision: str
    """Data type of the parameters in the forward pass: fp32, bf16 or fp16. Master weights and
    BatchNorm are always fp32."""
    autocast: str | None
    """bf16 or fp16: torch.autocast over fp32 parameters; None: off."""
    fp16: Fp16Config
    """The "fp16" block; fp16 autocast uses its loss scale settings as well."""
    offload_optimizer: bool
    """Whether optimizer states and master weights are kept in host memory."""
    offload_param: bool
    """Whether parameters are kept in host memory."""
    reduction: ReductionConfig
    """How gradients are reduced over the replicas."""
    batches: BatchPlan
    """Batch sizes."""
    gradient_clipping: float
    """Largest gradient norm; 0: no clipping."""
    optimizer: JsonOptimizer | None
    """The optimizer that the JSON names; None: the hyper-parameters decide."""
    own: YolodsConfig
    """The "yolods" block."""
    pipeline: PipelineConfig | None
    """The "pipeline" block; None: every rank holds the whole model's layers."""
    recompute: RecomputeConfig | None
    """The "activation_checkpointing" block; None: off, unless the "pipeline" block decides."""
    notes: tuple[str, ...]
    """One line per reason for settings of the JSON that have no effect or a cost."""

    @property
    def raw(self) -> dict[str, Any]:
        """The JSON as given; a fresh copy, for records and a resume only."""
        return json.loads(self.text)

    @property
    def fixed_batches(self) -> dict[str, int]:
        """The JSON's numbers of images, by their keys: per step, and per rank and forward pass."""
        given = ((key, self.raw.get(key)) for key in (TRAIN, MICRO))
        return {key: value for key, value in given if value not in (None, "auto")}

    @property
    def micro_batch(self) -> int:
        """Images per rank and forward pass."""
        return self.batches.micro

    @property
    def accumulation(self) -> int:
        """Forward passes per optimizer step, once warm-up is over."""
        return self.batches.accumulation

    @property
    def accumulation_auto(self) -> bool:
        """Whether accumulation follows from nbs, so that warm-up raises it from 1."""
        return self.batches.accumulation_auto

    @property
    def train_batch(self) -> int:
        """Images per optimizer step."""
        return self.batches.train_batch

    @property
    def dp_size(self) -> int:
        """Data-parallel ranks."""
        return self.batches.dp_size

    @property
    def world_size(self) -> int:
        """Number of all ranks: replicas x stages."""
        return self.dp_size * (self.pipeline.stages if self.pipeline else 1)

    def for_initialize(self, accumulation: int | None = None) -> dict[str, Any]:
        """The dictionary for `deepspeed.initialize`; a fresh copy.

        Without the blocks in `OURS`, and with numbers for the batch keys.

        Args:
            accumulation: forward passes per step at the start; `self.accumulation` by default.
        """
        resolved = json.loads(self.resolved)
        if accumulation is not None:
            # DeepSpeed asserts that the three batch keys multiply out, so both change together.
            resolved[ACCUMULATION] = accumulation
            resolved[TRAIN] = self.batches.batch * accumulation
        return resolved


def read_deepspeed(
    path: Path | None,
    *,
    batch_size: int | None,
    world_size: int,
    device: str,
    faults: Faults,
    hyper: Hyper | None = None,
    said_by: str = "--batch-size",
) -> DeepSpeedConfig:
    """Read and resolve a DeepSpeed JSON.

    Args:
        path: the file; None: use `DEFAULT_JSON`.
        batch_size: images per forward pass over all ranks; None: not given, the JSON or the default
            decides.
        world_size: number of all ranks; for a pipeline, replicas x stages.
        device: "cpu" or "cuda".
        faults: collects everything that is wrong; use the result only if it stays empty.
        hyper: gives nbs for accumulation, and the values that the JSON's optimizer leaves "auto".
        said_by: the source of batch_size, for messages.
    """
    where = "the default DeepSpeed configuration" if path is None else f"--deepspeed_config {path}"
    raw = DEFAULT_JSON if path is None else read_json(path, where, faults)
    # An unreadable file has already added its fault. Continue with the default, so that the user
    # sees the faults of the other flags in the same start.
    raw, batch_size = (
        (raw, batch_size) if raw is not None else (DEFAULT_JSON, batch_size or DEFAULT_BATCH)
    )
    return resolve(
        raw,
        path=path,
        batch_size=batch_size,
        world_size=world_size,
        device=device,
        faults=faults,
        hyper=hyper,
        said_by=said_by,
    )


def resolve(
    raw: Mapping[str, Any],
    *,
    path: Path | None,
    batch_size: int | None,
    world_size: int,
    device: str,
    faults: Faults,
    hyper: Hyper | None = None,
    said_by: str = "--batch-size",
    before: BatchPlan | None = None,
) -> DeepSpeedConfig:
    """As `read_deepspeed`, for a parsed JSON; `path` names it in messages, `before` is as for
    `plan_batches`."""
    hyper = hyper or Hyper()
    where = "DeepSpeed configuration" if path is None else path.name
    sound = check_keys(raw, where, faults)
    blocks = _read_blocks(sound, hyper, device, where, faults)
    optimizer, own, pipeline = blocks.optimizer, blocks.own, blocks.pipeline
    batches = plan_batches(
        sound,
        batch_size=batch_size,
        said_by=said_by,
        dp_size=replicas(pipeline, world_size, where, faults),
        nbs=hyper.nbs,
        where=where,
        faults=faults,
        before=before,
    )
    settings = JsonSettings(
        sound=sound,
        zero_stage=blocks.zero_stage,
        precision=blocks.precision,
        autocast=blocks.autocast,
        offload=blocks.offload,
        pipelined="pipeline" in sound,
        world_size=world_size,
        device=device,
        stock=own.overflow.handling == "stock",
        compressed=own.compression.kind != "none",
        optimizer=optimizer.name if optimizer else hyper.optimizer,
        arguments=optimizer.params if optimizer else {},
    )
    check_limits(settings, where, faults)
    return DeepSpeedConfig(
        path=path,
        text=json.dumps(raw),
        resolved=json.dumps(_resolved(sound, batches, blocks)),
        zero_stage=blocks.zero_stage,
        precision=blocks.precision,
        autocast=blocks.autocast,
        fp16=blocks.fp16,
        offload_optimizer=blocks.offload["optimizer"],
        offload_param=blocks.offload["param"],
        reduction=blocks.reduction,
        batches=batches,
        gradient_clipping=blocks.clipping,
        optimizer=optimizer,
        own=own,
        pipeline=pipeline,
        recompute=blocks.recompute,
        notes=(*unused_keys(settings, where), *timer_costs(settings, where)),
    )


@dataclass(frozen=True)
class _Blocks:
    """The settings of a JSON's blocks; the batch plan comes later, as it needs the replicas."""

    precision: str
    autocast: str | None
    fp16: Fp16Config
    zero_stage: int
    offload: dict[str, bool]
    reduction: ReductionConfig
    clipping: float
    own: YolodsConfig
    pipeline: PipelineConfig | None
    recompute: RecomputeConfig | None
    optimizer: JsonOptimizer | None


def _read_blocks(
    sound: Mapping[str, Any], hyper: Hyper, device: str, where: str, faults: Faults
) -> _Blocks:
    """Read each block and refuse combinations that contradict each other.

    Args:
        sound: the result of `check_keys`.
    """
    precision, autocast = _precision(sound, where, faults)
    fp16 = read_fp16(sound.get("fp16", {}))
    zero = sound.get("zero_optimization", {})
    stage = _value(zero, "stage", 0)
    own = read_yolods_block(sound.get("yolods"), where, faults)
    _check_precision(precision, autocast, stage, own, device, where, faults)
    _check_stability(sound, own, fp16, where, faults)
    offload = {target: _offload(zero, target, where, faults) for target in ("optimizer", "param")}
    _check_zero(zero, stage, offload, where, faults)
    pipeline = read_pipeline(sound.get("pipeline"), where, faults)
    check_pipeline_zero(pipeline, stage, offload, where, faults)
    block = sound.get("activation_checkpointing")
    return _Blocks(
        precision=precision,
        autocast=autocast,
        fp16=fp16,
        zero_stage=stage,
        offload=offload,
        reduction=read_reduction(
            zero,
            stage,
            own.accumulation.reduce,
            pipelined="pipeline" in sound,
            compressed=own.compression.kind != "none",
        ),
        clipping=float(_value(sound, "gradient_clipping", MAX_NORM)),
        own=own,
        pipeline=pipeline,
        recompute=read_recompute(block, pipelined="pipeline" in sound, where=where, faults=faults),
        optimizer=read_optimizer(sound.get("optimizer"), hyper, where, faults),
    )


def _value(block: Mapping[str, Any], key: str, default: Any) -> Any:
    """A key's value; the default for a missing key and for "auto", as in DeepSpeed."""
    value = block.get(key, default)
    return default if value is None or value == "auto" else value


def _precision(sound: Mapping[str, Any], where: str, faults: Faults) -> tuple[str, str | None]:
    """The type of the parameters, "fp32", "bf16" or "fp16", and that of autocast; None: it is off.

    Enabling more than one of "fp16", "bf16" and "torch_autocast" is a fault.
    """
    if "bf16" in sound and "bfloat16" in sound:
        faults.add(f'{where}: "bf16" and "bfloat16" are the same block; keep "bf16"')
    blocks = {"fp16": sound.get("fp16", {}), "bf16": sound.get("bf16", sound.get("bfloat16", {}))}
    enabled = [name for name, block in blocks.items() if _value(block, "enabled", False)]
    for name, block in blocks.items():  # DeepSpeed reads these keys even in a disabled block
        for key in (f"{name}_master_weights_and_grads", "bf16_optimizer_states"):
            if _value(block, key, False):
                faults.add(
                    f'{where}: "{name}".{key} is not supported: the EMA needs fp32 master weights'
                )
    torch_autocast, autocast = sound.get("torch_autocast", {}), None
    if _value(torch_autocast, "enabled", False):
        enabled.append("torch_autocast")
        dtype = str(torch_autocast.get("dtype"))
        autocast = _DTYPES.get(dtype.lower())
        if autocast is None:
            given = f"is {dtype!r}" if "dtype" in torch_autocast else "is missing"
            faults.add(f'{where}: "torch_autocast".dtype {given}: it must be bfloat16 or float16')
    if len(enabled) > 1:
        names = " and ".join(f'"{name}"' for name in enabled)
        faults.add(
            f"{where}: {names} are enabled together; keep one: each sets the data type of the "
            "computation"
        )
    # Autocast computes in its own type over fp32 parameters.
    return (enabled[0] if enabled and enabled[0] != "torch_autocast" else "fp32"), autocast


def _check_precision(
    precision: str,
    autocast: str | None,
    zero_stage: int,
    own: YolodsConfig,
    device: str,
    where: str,
    faults: Faults,
) -> None:
    """Refuse what DeepSpeed 0.19.8 computes wrongly (measured) or the device lacks."""
    if precision == "fp16" and zero_stage == 0:
        # DeepSpeed's fp16 optimizers divide gradients by the loss scale, but backward multiplies
        # the loss by it only for ZeRO optimizers.
        faults.add(
            f'{where}: "fp16" with ZeRO stage 0 divides gradients by a loss scale that was never '
            'applied; set "zero_optimization": {"stage": 1}'
        )
    if autocast == "fp16" and own.overflow.handling == "stock":
        # DeepSpeed clips gradients that still carry GradScaler's scale: it saw a norm of 0.189 as
        # 12395. After the first overflow, ZeRO 1 to 3 skip every step.
        faults.add(
            f'{where}: "torch_autocast" in float16 with "overflow": {{"handling": "stock"}}: '
            "DeepSpeed clips gradients that are still scaled, and skips every step after an "
            'overflow; keep "handling": "own"'
        )
    if device == "cpu" and precision == "fp16":
        faults.add(f'{where}: "fp16": {_NO_CPU_FP16}')
    if device == "cpu" and autocast == "fp16":
        faults.add(f'{where}: "torch_autocast".dtype float16: {_NO_CPU_FP16}')


def _check_stability(
    sound: Mapping[str, Any], own: YolodsConfig, fp16: Fp16Config, where: str, faults: Faults
) -> None:
    """Refuse settings of the "yolods" block that contradict others."""
    policy, clipping = own.clipping.policy, _value(sound, "gradient_clipping", None)
    if own.overflow.handling == "stock" and policy != "global_norm":
        faults.add(
            f'{where}: "clipping": {{"policy": "{policy}"}} with "overflow": {{"handling": '
            '"stock"}: DeepSpeed supports only clipping by the global norm'
        )
    if clipping and not POLICIES[policy].uses_max_norm:
        faults.add(
            f'{where}: "gradient_clipping" {clipping:g} with "clipping": {{"policy": "{policy}"}} '
            "has no effect: this policy does not use the global norm; remove one of them"
        )
    ceiling, floor = own.overflow.max_loss_scale, float(fp16.min_loss_scale)
    if ceiling < floor:
        faults.add(
            f'{where}: "overflow".max_loss_scale {ceiling:g} is below "fp16".min_loss_scale '
            f"{floor:g}; swap them"
        )


def precheck_deepspeed(named: str | Path, *, world_size: int, device: str, faults: Faults) -> bool:
    """Find the faults of a JSON that do not depend on the other flags of a start.

    Args:
        named: a path, or the name of a file in ds_configs/.
        world_size: number of all ranks.
        device: "cpu" or "cuda".

    Returns:
        whether the JSON offloads anything to host memory; on GPUs DeepSpeed compiles an optimizer
        for that.
    """
    known = len(faults)
    path = find_json(named, faults)
    where = f"--deepspeed_config {path}"
    raw = read_json(path, where, faults) if len(faults) == known else None
    if raw is None:
        return False
    # --batch-size, unknown here, sets a batch that the JSON leaves open. Assume one image per rank,
    # which always divides evenly, so that the default of 16 does not cause a fault that the real
    # start would not have.
    is_open = all(raw.get(key) in (None, "auto") for key in (TRAIN, MICRO))
    batch = world_size if is_open else None
    config = resolve(
        raw, path=path, batch_size=batch, world_size=world_size, device=device, faults=faults
    )
    return config.offload_optimizer or config.offload_param


def _offload(zero: Mapping[str, Any], target: str, where: str, faults: Faults) -> bool:
    """Whether "optimizer" or "param" is kept in host memory, by DeepSpeed's current or old key."""
    device = _value(zero.get(f"offload_{target}", {}), "device", "none")
    old = "cpu_offload" if target == "optimizer" else "cpu_offload_param"
    if device == "nvme":
        faults.add(
            f'{where}: "zero_optimization".offload_{target}.device nvme is not supported: the EMA '
            "reads every master weight after every step; use cpu"
        )
    return device != "none" or bool(_value(zero, old, False))


def _check_zero(
    zero: Mapping[str, Any],
    zero_stage: int,
    offload: Mapping[str, bool],
    where: str,
    faults: Faults,
) -> None:
    """Refuse settings of zero_optimization that the stage or yolods does not support."""
    _check_offload_stage(zero, zero_stage, offload, where, faults)
    if zero.get("zenflow") is not None:
        faults.add(
            f'{where}: "zero_optimization".zenflow is not supported: its delayed updates conflict '
            "with the EMA"
        )
    if _value(zero, "parameter_alignment", False):
        faults.add(
            f'{where}: "zero_optimization".parameter_alignment is not supported: checkpoints '
            "cannot represent its padding"
        )
    if not _value(zero, "compute_grad_norm", True):
        faults.add(
            f'{where}: "zero_optimization".compute_grad_norm false is not supported: clipping and '
            "the curves need the norm"
        )


def _check_offload_stage(
    zero: Mapping[str, Any],
    zero_stage: int,
    offload: Mapping[str, bool],
    where: str,
    faults: Faults,
) -> None:
    """Refuse offloading that the ZeRO stage does not support."""
    if offload["optimizer"] and zero_stage == 0:
        faults.add(f'{where}: "offload_optimizer" needs ZeRO stage 1, 2 or 3, but the stage is 0')
    if offload["param"] and zero_stage < 3:
        faults.add(f'{where}: "offload_param" needs ZeRO stage 3, but the stage is {zero_stage}')
    ratio = _value(zero.get("offload_optimizer", {}), "ratio", 1.0)
    if offload["optimizer"] and ratio < 1 and zero_stage < 3:
        faults.add(
            f'{where}: "offload_optimizer".ratio {ratio:g} needs ZeRO stage 3, but the stage is '
            f"{zero_stage}"
        )


def _resolved(sound: Mapping[str, Any], batches: BatchPlan, blocks: _Blocks) -> dict[str, Any]:
    """The JSON for `deepspeed.initialize`: without our blocks and keys that have no effect, with
    numbers for the batch keys, and with our defaults where DeepSpeed's do not work."""
    resolved = {key: value for key, value in sound.items() if key not in (*OURS, *OFF, *UNUSED)}
    if not (sound.get("comms_logger") or {}).get("enabled"):
        resolved.pop("comms_logger", None)  # DeepSpeed turns it on if the block merely exists
    resolved |= {
        TRAIN: batches.train_batch,
        MICRO: batches.micro,
        ACCUMULATION: batches.accumulation,
        "gradient_clipping": blocks.clipping,
        "timers": resolved_timers(sound),
    }
    if _value(sound, "steps_per_print", None) is None:
        # DeepSpeed divides by this number, so null would raise; no run reaches this many steps.
        resolved["steps_per_print"] = 10**12
    # DeepSpeed counts only its own and apex' optimizers as tested, and yolods uses torch's, as
    # ultralytics does.
    resolved["zero_allow_untested_optimizer"] = True
    if blocks.reduction.owned:
        # DeepSpeed's overlap waits for the whole device at the end of each backward pass. Ours
        # (`zero.owned_reduction`) needs neither its stream nor its second bucket.
        zero = resolved.get("zero_optimization", {})
        resolved["zero_optimization"] = {**zero, "overlap_comm": False}
    if "pipeline" in sound or blocks.own.compression.kind != "none":
        # Both belong to the hooks and buckets of DeepSpeed's backward pass. A pipeline stage runs
        # our own backward pass, which reduces gradients once per step, as compression does.
        zero = {
            key: value
            for key, value in resolved.get("zero_optimization", {}).items()
            if key != "overlap_comm"
        }
        resolved["zero_optimization"] = {
            **zero,
            "contiguous_gradients": False,
            "overlap_comm": False,
        }
    if any(blocks.offload.values()):
        # By default DeepSpeed requires its CPUAdam here, which takes minutes to compile on the
        # first start.
        resolved.setdefault("zero_force_ds_cpu_optimizer", False)
    if (optimizer := blocks.optimizer) is not None:
        params = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in optimizer.params.items()
        }
        resolved["optimizer"] = {"type": optimizer.name, "params": params}
    return resolved
