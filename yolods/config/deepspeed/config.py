"""A DeepSpeed JSON, read and resolved: every key checked, batch sizes worked out, wrong combinations refused.

What DeepSpeed itself would get wrong without a word (see `_check_precision`) is refused here by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolods.clipping.policy import POLICIES
from yolods.config.deepspeed.batch import ACCUMULATION, DEFAULT_BATCH, MICRO, TRAIN, BatchPlan, plan_batches
from yolods.config.deepspeed.fp16 import Fp16Config, read_fp16
from yolods.config.deepspeed.keys import check_keys
from yolods.config.deepspeed.limits import JsonSettings, check_limits
from yolods.config.deepspeed.pipeline import PipelineConfig, check_pipeline_zero, read_pipeline, replicas
from yolods.config.deepspeed.recompute import RecomputeConfig, read_recompute
from yolods.config.deepspeed.timers import resolved_timers, timer_costs
from yolods.config.deepspeed.unused_keys import OFF, UNUSED, unused_keys
from yolods.config.deepspeed.yolods_block import YolodsConfig, read_yolods_block
from yolods.config.hyper.hyperparameters import Hyper
from yolods.config.names.recipes import find_json
from yolods.config.optimizers.json_block import JsonOptimizer, read_optimizer
from yolods.errors import Faults
from yolods.parsing.json_file import read_json

MAX_NORM = 10.0
"""Gradient norm at which gradients are clipped where the JSON does not say; ultralytics clips at 10."""

DEFAULT_JSON: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": MAX_NORM,
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 50000000, "allgather_bucket_size": 50000000},
}
"""What runs without --deepspeed_config: the same as ds_configs/zero1_fp32.json."""

_DTYPES = {
    **dict.fromkeys(("bf16", "bfloat16", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "half", "torch.float16"), "fp16"),
}
OURS = ("yolods", "pipeline", "optimizer", "activation_checkpointing")
"""Blocks that yolods sees to itself."""
_NO_CPU_FP16 = "the CPU backend has no fp16; use bf16 or fp32"


# Wide: a field for each thing that DeepSpeed's JSON decides.
@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """A run's DeepSpeed configuration; nothing in it is left open."""

    path: Path | None
    """Where the JSON was read; None: the built-in default."""
    text: str
    """The JSON as it was given, one canonical line."""
    resolved: str
    """JSON for `deepspeed.initialize`, one canonical line: see `for_initialize`."""
    zero_stage: int
    """0 to 3."""
    precision: str
    """Type of the parameters that compute: fp32, bf16 or fp16. Master weights and BatchNorm are fp32 in each."""
    autocast: str | None
    """bf16 or fp16: torch.autocast over fp32 parameters; None: off."""
    fp16: Fp16Config
    """The "fp16" block, whose loss scale fp16 autocast goes by as well."""
    offload_optimizer: bool
    """Whether optimizer states and master weights live in host memory."""
    offload_param: bool
    """Whether parameters live in host memory."""
    batches: BatchPlan
    """Batch sizes."""
    gradient_clipping: float
    """Largest gradient norm; 0: no clipping."""
    optimizer: JsonOptimizer | None
    """The optimizer that the JSON names; None: the hyper-parameters say it."""
    own: YolodsConfig
    """The "yolods" block."""
    pipeline: PipelineConfig | None
    """The "pipeline" block; None: every rank holds the whole model's layers."""
    recompute: RecomputeConfig | None
    """The "activation_checkpointing" block; None: all activations are kept, or the "pipeline" block says it."""
    notes: tuple[str, ...]
    """What the JSON asks for without effect, or at a cost, a line for each reason."""

    @property
    def raw(self) -> dict[str, Any]:
        """The JSON as it was given; a fresh copy, to be changed at will. For records and for a resume alone: whoever
        computes reads the typed fields."""
        return json.loads(self.text)

    @property
    def micro_batch(self) -> int:
        """Images a rank sees in one forward pass."""
        return self.batches.micro

    @property
    def accumulation(self) -> int:
        """Forward passes an optimizer step, once warm-up is over."""
        return self.batches.accumulation

    @property
    def accumulation_auto(self) -> bool:
        """Whether accumulation follows from nbs, so that warm-up raises it from 1."""
        return self.batches.accumulation_auto

    @property
    def train_batch(self) -> int:
        """Images an optimizer step."""
        return self.batches.train_batch

    @property
    def dp_size(self) -> int:
        """Data-parallel ranks."""
        return self.batches.dp_size

    @property
    def world_size(self) -> int:
        """Ranks in all: replicas x stages."""
        return self.dp_size * (self.pipeline.stages if self.pipeline else 1)

    def for_initialize(self, accumulation: int | None = None) -> dict[str, Any]:
        """The dictionary for `deepspeed.initialize`; a fresh copy.

        The blocks that yolods sees to itself are taken out and batch keys are numbers.

        Args:
            accumulation: forward passes a step to start with; `self.accumulation` by default.
        """
        resolved = json.loads(self.resolved)
        if accumulation is not None:
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
        path: the file; None takes `DEFAULT_JSON`.
        batch_size: images a forward pass over all ranks; None: not given, so the JSON or the default says it.
        world_size: ranks in all; of a pipeline, replicas x stages.
        device: "cpu" or "cuda".
        faults: takes everything that is wrong; the result is only to be used where it stayed empty.
        hyper: gives nbs for accumulation, and what the JSON's optimizer leaves "auto".
        said_by: what gave batch_size, for messages.
    """
    where = "the default DeepSpeed configuration" if path is None else f"--deepspeed_config {path}"
    raw = DEFAULT_JSON if path is None else read_json(path, where, faults)
    # A file that cannot be read has its fault already; the default keeps the remaining checks going.
    raw, batch_size = (raw, batch_size) if raw is not None else (DEFAULT_JSON, batch_size or DEFAULT_BATCH)
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
    """The same as `read_deepspeed` for a JSON that has been read; `path` names it in messages, `before` is as for
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
        optimizer=optimizer.name if optimizer else hyper.optimizer,
        arguments=optimizer.params if optimizer else {},
    )
    check_limits(settings, where, faults)
    return DeepSpeedConfig(
        path=path,
        text=json.dumps(raw),
        resolved=json.dumps(_resolved(sound, batches, blocks.clipping, optimizer, any(blocks.offload.values()))),
        zero_stage=blocks.zero_stage,
        precision=blocks.precision,
        autocast=blocks.autocast,
        fp16=blocks.fp16,
        offload_optimizer=blocks.offload["optimizer"],
        offload_param=blocks.offload["param"],
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
    """What the blocks of a JSON say, before it is known how many images a step has."""

    precision: str
    autocast: str | None
    fp16: Fp16Config
    zero_stage: int
    offload: dict[str, bool]
    clipping: float
    own: YolodsConfig
    pipeline: PipelineConfig | None
    recompute: RecomputeConfig | None
    optimizer: JsonOptimizer | None


def _read_blocks(sound: Mapping[str, Any], hyper: Hyper, device: str, where: str, faults: Faults) -> _Blocks:
    """Read each block, and refuse what they say together.

    Args:
        sound: of `check_keys`.
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
        clipping=float(_value(sound, "gradient_clipping", MAX_NORM)),
        own=own,
        pipeline=pipeline,
        recompute=read_recompute(block, pipelined="pipeline" in sound, where=where, faults=faults),
        optimizer=read_optimizer(sound.get("optimizer"), hyper, where, faults),
    )


def _value(block: Mapping[str, Any], key: str, default: Any) -> Any:
    """A key's value; a missing one and "auto" are the default, as in DeepSpeed."""
    value = block.get(key, default)
    return default if value is None or value == "auto" else value


def _precision(sound: Mapping[str, Any], where: str, faults: Faults) -> tuple[str, str | None]:
    """Parameter type and autocast type; more than one of the three switches is a fault."""
    if "bf16" in sound and "bfloat16" in sound:
        faults.add(f'{where}: "bf16" and "bfloat16" are the same block; keep "bf16"')
    blocks = {"fp16": sound.get("fp16", {}), "bf16": sound.get("bf16", sound.get("bfloat16", {}))}
    on = [name for name, block in blocks.items() if _value(block, "enabled", False)]
    for name, block in blocks.items():  # DeepSpeed reads them of a block that is off, too
        for key in (f"{name}_master_weights_and_grads", "bf16_optimizer_states"):
            if _value(block, key, False):
                faults.add(f'{where}: "{name}".{key} is refused: the EMA is kept from fp32 master weights')
    casting = sound.get("torch_autocast", {})
    autocast = None
    if _value(casting, "enabled", False):
        on.append("torch_autocast")
        dtype = str(casting.get("dtype"))
        autocast = _DTYPES.get(dtype.lower())
        if autocast is None:
            given = f"is {dtype!r}" if "dtype" in casting else "is missing"
            faults.add(f'{where}: "torch_autocast".dtype {given}: it has to be bfloat16 or float16')
    if len(on) > 1:
        names = " and ".join(f'"{name}"' for name in on)
        faults.add(f"{where}: {names} are enabled together; keep one: each decides the type that layers compute in")
    return (on[0] if on and on[0] != "torch_autocast" else "fp32"), autocast


def _check_precision(
    precision: str, autocast: str | None, zero_stage: int, own: YolodsConfig, device: str, where: str, faults: Faults
) -> None:
    """Refuse what DeepSpeed 0.19.8 computes wrongly (measured), and what the device cannot do."""
    if precision == "fp16" and zero_stage == 0:
        # Its fp16 optimizers divide gradients by a loss scale that backward applies for ZeRO optimizers only.
        faults.add(
            f'{where}: "fp16" with ZeRO stage 0 divides gradients by a loss scale that was never applied; '
            'set "zero_optimization": {"stage": 1}'
        )
    if autocast == "fp16" and own.overflow.handling == "stock":
        # What it clips still carries GradScaler's scale, a norm of 0.189 was seen as 12395, and after the first
        # overflow ZeRO 1 to 3 skip every step.
        faults.add(
            f'{where}: "torch_autocast" in float16 with "overflow": {{"handling": "stock"}}: DeepSpeed clips gradients '
            'that are still scaled, and never steps again after an overflow; leave "handling" at "own"'
        )
    if device == "cpu" and precision == "fp16":
        faults.add(f'{where}: "fp16": {_NO_CPU_FP16}')
    if device == "cpu" and autocast == "fp16":
        faults.add(f'{where}: "torch_autocast".dtype float16: {_NO_CPU_FP16}')


def _check_stability(sound: Mapping[str, Any], own: YolodsConfig, fp16: Fp16Config, where: str, faults: Faults) -> None:
    """Settings of the "yolods" block that contradict others."""
    policy, clipping = own.clipping.policy, _value(sound, "gradient_clipping", None)
    if own.overflow.handling == "stock" and policy != "global_norm":
        faults.add(
            f'{where}: "clipping": {{"policy": "{policy}"}} with "overflow": {{"handling": "stock"}}: DeepSpeed '
            "clips by the global norm and knows no other policy"
        )
    if clipping and not POLICIES[policy].uses_max_norm:
        faults.add(
            f'{where}: "gradient_clipping" {clipping:g} with "clipping": {{"policy": "{policy}"}}, which does not go '
            "by the global norm; leave one of them out"
        )
    ceiling, floor = own.overflow.max_loss_scale, float(fp16.min_loss_scale)
    if ceiling < floor:
        faults.add(
            f'{where}: "overflow".max_loss_scale {ceiling:g} is below "fp16".min_loss_scale {floor:g}; exchange them'
        )


def precheck_deepspeed(named: str | Path, *, world_size: int, device: str, faults: Faults) -> bool:
    """Look for what `read_deepspeed` would find fault with whatever the other flags of a start are.

    Args:
        named: a path, or the name of a ready file.
        world_size: ranks in all.
        device: "cpu" or "cuda".

    Returns:
        whether it keeps anything in host memory, for which DeepSpeed compiles an optimizer where there are GPUs.
    """
    known = len(faults)
    path = find_json(named, faults)
    where = f"--deepspeed_config {path}"
    raw = read_json(path, where, faults) if len(faults) == known else None
    if raw is None:
        return False
    # A batch that the JSON leaves open is for --batch-size to say: one that can be dealt to these ranks.
    is_open = all(raw.get(key) in (None, "auto") for key in (TRAIN, MICRO))
    batch = world_size if is_open else None
    config = resolve(raw, path=path, batch_size=batch, world_size=world_size, device=device, faults=faults)
    return config.offload_optimizer or config.offload_param


def _offload(zero: Mapping[str, Any], target: str, where: str, faults: Faults) -> bool:
    """Whether `target` ("optimizer" or "param") is kept in host memory, by DeepSpeed's present key or its old one."""
    device = _value(zero.get(f"offload_{target}", {}), "device", "none")
    old = "cpu_offload" if target == "optimizer" else "cpu_offload_param"
    if device == "nvme":
        faults.add(
            f'{where}: "zero_optimization".offload_{target}.device nvme is refused: the EMA reads every master weight '
            "after every step; use cpu"
        )
    return device != "none" or bool(_value(zero, old, False))


def _check_zero(
    zero: Mapping[str, Any], zero_stage: int, offload: Mapping[str, bool], where: str, faults: Faults
) -> None:
    """What each ZeRO stage cannot do."""
    if offload["optimizer"] and zero_stage == 0:
        faults.add(f'{where}: "offload_optimizer" needs ZeRO stage 1, 2 or 3, and the stage is 0')
    if offload["param"] and zero_stage < 3:
        faults.add(f'{where}: "offload_param" needs ZeRO stage 3, and the stage is {zero_stage}')
    ratio = _value(zero.get("offload_optimizer", {}), "ratio", 1.0)
    if offload["optimizer"] and ratio < 1 and zero_stage < 3:
        faults.add(f'{where}: "offload_optimizer".ratio {ratio:g} needs ZeRO stage 3, and the stage is {zero_stage}')
    if zero.get("zenflow") is not None:
        faults.add(f'{where}: "zero_optimization".zenflow is refused: its delayed updates and the EMA clash')
    if _value(zero, "parameter_alignment", False):
        faults.add(f'{where}: "zero_optimization".parameter_alignment is refused: checkpoints do not know its padding')
    if not _value(zero, "compute_grad_norm", True):
        faults.add(f'{where}: "zero_optimization".compute_grad_norm false is refused: the norm is clipped by and shown')


def _resolved(
    sound: Mapping[str, Any], batches: BatchPlan, clipping: float, optimizer: JsonOptimizer | None, offload: bool
) -> dict[str, Any]:
    """What `deepspeed.initialize` gets: our blocks and what has no effect out, numbers in, and defaults where
    DeepSpeed's would not do."""
    resolved = {key: value for key, value in sound.items() if key not in (*OURS, *OFF, *UNUSED)}
    if not (sound.get("comms_logger") or {}).get("enabled"):
        resolved.pop("comms_logger", None)  # its presence alone turns it on
    resolved |= {
        TRAIN: batches.train_batch,
        MICRO: batches.micro,
        ACCUMULATION: batches.accumulation,
        "gradient_clipping": clipping,
        "timers": resolved_timers(sound),
    }
    if _value(sound, "steps_per_print", None) is None:
        # DeepSpeed divides by it, so that null would not do; this number of steps is never reached.
        resolved["steps_per_print"] = 10**12
    # DeepSpeed counts only its own and apex' optimizers as tested; torch's are what ultralytics trains with.
    resolved["zero_allow_untested_optimizer"] = True
    if "pipeline" in sound:
        # Hooks and buckets of DeepSpeed's own backward pass; a stage's is ours, and reduces once a step.
        zero = {key: value for key, value in resolved.get("zero_optimization", {}).items() if key != "overlap_comm"}
        resolved["zero_optimization"] = {**zero, "contiguous_gradients": False, "overlap_comm": False}
    if offload:
        # Without it DeepSpeed insists on its CPUAdam, which is compiled for minutes on the first start.
        resolved.setdefault("zero_force_ds_cpu_optimizer", False)
    if optimizer is not None:
        params = {key: list(value) if isinstance(value, tuple) else value for key, value in optimizer.params.items()}
        resolved["optimizer"] = {"type": optimizer.name, "params": params}
    return resolved
