"""DeepSpeed 0.19.8's keys with their rules, and the features that yolods does not support.

DeepSpeed ignores an unknown key at the top level and in many blocks, so a misspelt key silently has
no effect; in the other blocks it ends the ranks. `limits` refuses keys that cannot be combined,
`unused_keys` reports those without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from yolods.errors import Faults, nearest
from yolods.parsing.rules import (
    ADDRESSABLE,
    Rule,
    check,
    either,
    flag,
    items,
    one_of,
    optional,
    real,
    shown,
    text,
    whole,
)

_ANY = Rule("anything", lambda value: value)
_NAMES = either(text(), items(text(), what="a list of names"))
_AMOUNT = whole(0, most=ADDRESSABLE)
# nvme has a refusal of its own, which gives the reason.
_DEVICE = replace(one_of("none", "cpu", "nvme"), permitted=one_of("none", "cpu").permitted)


def _string() -> Rule:
    return Rule("text", lambda value: value if isinstance(value, str) else _wrong())


def _folder_name() -> Rule:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or value in ("", ".", "..") or "/" in value:
            raise ValueError
        return value

    return Rule("a folder's name, without /", parse)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError
    return value


def _wrong() -> None:
    raise ValueError


OFFLOAD_OPTIMIZER: dict[str, Rule] = {
    "device": _DEVICE,
    "nvme_path": optional(text()),
    "buffer_count": whole(0),
    "pin_memory": flag(),
    "pipeline_read": flag(),
    "pipeline_write": flag(),
    "fast_init": flag(),
    "ratio": real(0, 1),
    "super_offload": flag(),
    "cpuadam_cores_perc": real(0, 1),
}
OFFLOAD_PARAM: dict[str, Rule] = {
    "device": _DEVICE,
    "nvme_path": optional(text()),
    "buffer_count": whole(0),
    "buffer_size": _AMOUNT,
    "max_in_cpu": _AMOUNT,
    "pin_memory": flag(),
}
ON_BY_DEFAULT = (
    *(
        "contiguous_gradients",
        "reduce_scatter",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
    ),
    *(
        "compute_grad_norm",
        "load_from_fp32_weights",
        "ignore_unused_parameters",
        "memory_efficient_linear",
    ),
    "override_module_apply",
)
"""Switches of zero_optimization that are on by default; the others are off by default."""
_FLAGS = """elastic_checkpoint
    gather_16bit_weights_on_model_save stage3_gather_16bit_weights_on_model_save
    stage3_gather_fp16_weights_on_model_save use_all_reduce_for_fetch_params stage3_use_all_reduce_for_fetch_params
    allgather_sequential stage3_allgather_sequential legacy_stage1 round_robin_gradients
    parameter_alignment zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients
    pipeline_loading_checkpoint log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory"""  # noqa: E501
_OLD_FLAGS = "cpu_offload cpu_offload_param cpu_offload_use_pin_memory"
_COUNTS = """allgather_bucket_size sub_group_size prefetch_bucket_size stage3_prefetch_bucket_size
    param_persistence_threshold stage3_param_persistence_threshold model_persistence_threshold
    stage3_model_persistence_threshold max_live_parameters stage3_max_live_parameters max_reuse_distance
    stage3_max_reuse_distance module_granularity_threshold stage3_module_granularity_threshold
    zero_hpz_partition_size"""  # noqa: E501
ZERO: dict[str, Rule | dict[str, Rule]] = {
    "stage": whole(0, 3),
    "reduce_bucket_size": whole(1, most=ADDRESSABLE),
    "overlap_comm": optional(flag()),
    "offload_optimizer": OFFLOAD_OPTIMIZER,
    "offload_param": OFFLOAD_PARAM,
    "zenflow": _ANY,
    "leaf_module": {name: _NAMES for name in ("classes", "names", "name_suffixes")},
    **{name: flag() for name in (*ON_BY_DEFAULT, *_FLAGS.split())},
    **{name: optional(flag()) for name in _OLD_FLAGS.split()},
    **{name: _AMOUNT for name in _COUNTS.split()},
}
FP16: dict[str, Rule] = {
    "enabled": flag(),
    "auto_cast": flag(),
    "loss_scale": real(0),
    "initial_scale_power": whole(0, 127),
    "loss_scale_window": whole(1),
    "hysteresis": whole(1),
    "consecutive_hysteresis": flag(),
    "min_loss_scale": whole(1),
    "fp16_master_weights_and_grads": flag(),
}
BF16: dict[str, Rule] = {
    "enabled": flag(),
    "immediate_grad_update": flag(),
    "check_grad_overflow": flag(),
    "bf16_master_weights_and_grads": flag(),
    "bf16_optimizer_states": flag(),
}
_LAYERS = (
    *("torch.nn.Linear", "torch.nn.Conv1d", "torch.nn.Conv2d", "torch.nn.Conv3d"),
    *("torch.nn.modules.linear.Linear", "torch.nn.modules.conv.Conv1d"),
    *("torch.nn.modules.conv.Conv2d", "torch.nn.modules.conv.Conv3d"),
)
AUTOCAST: dict[str, Rule] = {
    "enabled": flag(),
    "dtype": text(),
    "lower_precision_safe_modules": items(
        one_of(*_LAYERS), what=f"a list of classes, of {', '.join(_LAYERS[:4])}"
    ),
}
_BLOCK = Rule("an object {...}", lambda value: value if isinstance(value, Mapping) else _wrong())
_DTYPE = one_of("fp32", "fp16", "bf16")
_DTYPE_NAMES = one_of(
    *("fp32", "float32", "float", "torch.float32", "fp16", "float16", "half", "torch.float16"),
    *("bf16", "bfloat16", "torch.bfloat16"),
)

COMMS_LOGGER: dict[str, Rule] = {
    **dict.fromkeys(("enabled", "verbose", "debug", "prof_all"), flag()),
    "prof_ops": Rule("a list of names of operations", _texts),
}
TENSORBOARD: dict[str, Rule] = {
    "enabled": flag(),
    "output_path": _string(),
    "job_name": _folder_name(),
}
WANDB: dict[str, Rule] = {
    "enabled": flag(),
    "group": optional(text()),
    "team": optional(text()),
    "project": text(),
}
COMET: dict[str, Rule] = {
    "enabled": flag(),
    "samples_log_interval": whole(1),
    "online": optional(flag()),
    "mode": optional(one_of("get", "create", "get_or_create")),
    **dict.fromkeys(
        ("project", "workspace", "api_key", "experiment_name", "experiment_key"), optional(text())
    ),
}
FLOPS_PROFILER: dict[str, Rule] = {
    "enabled": flag(),
    "recompute_fwd_factor": real(0),
    "profile_step": whole(1),
    "module_depth": whole(-1),
    "top_modules": whole(1),
    "detailed": flag(),
    "output_file": optional(text()),
}
CHECKPOINT: dict[str, Rule | dict[str, Rule]] = {
    "tag_validation": one_of("Warn", "Ignore", "Fail"),
    "load_universal": flag(),
    "use_node_local_storage": flag(),
    "checkpoint_serialization": flag(),
    "parallel_write": {"pipeline_stage": flag()},
    "writer": {
        "type": one_of("mock", "python", "fast"),
        "io_buffer_size": _AMOUNT,
        "io_buffer_double": flag(),
        "show_statistics": flag(),
        "data_parallel": optional(one_of("replica", "socket", "machine")),
        "decoupled": flag(),
        "io_multiplier": whole(1),
    },
}
DATA_TYPES: dict[str, Rule] = {
    **dict.fromkeys(("grad_accum_dtype", "param_dtype", "buffer_dtype"), optional(_DTYPE_NAMES)),
    "keep_in_fp32_modules": items(text(), what="a list of patterns of names"),
}
AIO: dict[str, Rule] = {
    **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism"), whole(1)),
    **dict.fromkeys(("single_submit", "overlap_events", "use_gds"), flag()),
}
TIMERS: dict[str, dict[str, Rule]] = {"throughput": {"enabled": flag(), "synchronized": flag()}}
_COMPILE_FLAGS = """deepcompile autoep_non_moe free_activation offload_activation offload_activation_pin_memory
    offload_opt_states double_buffer symmetric_memory debug_log offload_parameters sync_before_reduce sync_after_reduce
    sync_before_allgather sync_after_allgather keep_int_input_tensors keep_all_input_tensors"""  # noqa: E501
COMPILE: dict[str, Rule] = {
    **{name: flag() for name in _COMPILE_FLAGS.split()},
    "free_activation_threshold": _AMOUNT,
    "passes": optional(items(one_of("z1", "z3", "autosp", "autotp"), what="a list of passes")),
}

_TOP_FLAGS = """managed_gradient_accumulation dump_state disable_python_gc disable_allgather prescale_gradients
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer wall_clock_breakdown memory_breakdown
    use_data_before_expert_parallelism dataloader_drop_last"""  # noqa: E501
_TOP_BLOCKS = """optimizer scheduler activation_checkpointing autotuning hybrid_engine data_efficiency
    weight_quantization tensor_parallel expert_parallel pipeline yolods"""  # noqa: E501
TOP: dict[str, Rule | Mapping[str, Any]] = {
    "train_batch_size": whole(1),
    "train_micro_batch_size_per_gpu": whole(1),
    "gradient_accumulation_steps": whole(1),
    "gradient_clipping": real(0),
    "zero_optimization": ZERO,
    "fp16": FP16,
    "bf16": BF16,
    "bfloat16": BF16,
    "torch_autocast": AUTOCAST,
    "comms_logger": COMMS_LOGGER,
    "tensorboard": TENSORBOARD,
    "csv_monitor": TENSORBOARD,
    "wandb": WANDB,
    "comet": COMET,
    "flops_profiler": FLOPS_PROFILER,
    "checkpoint": CHECKPOINT,
    "data_types": DATA_TYPES,
    "aio": AIO,
    "timers": TIMERS,
    "compile": COMPILE,
    "steps_per_print": optional(whole(1)),
    "communication_data_type": optional(_DTYPE),
    "seq_parallel_communication_data_type": optional(_DTYPE),
    "gradient_predivide_factor": real(0, above=True),
    "gradient_allreduce_op": one_of("mean", "sum"),
    "sequence_parallel_size": whole(1),
    "vocabulary_size": optional(whole(0)),
    "allgather_size": _AMOUNT,
    "log_level": optional(one_of("debug", "info", "warning", "error", "critical")),
    "datastates_ckpt": _ANY,
    **{name: flag() for name in _TOP_FLAGS.split()},
    **{name: _BLOCK for name in _TOP_BLOCKS.split()},
}
"""Every top-level key -> its rule, or the rules of its block."""

_REMOVED = "removed in DeepSpeed 0.19; remove it"
REMOVED: dict[str, str] = {
    "nebula": _REMOVED,
    "compression_training": _REMOVED,
    "amp": f"{_REMOVED}, and use bf16, fp16 or torch_autocast",
    "quantize_training": _REMOVED,
    "sparse_gradients": _REMOVED,
    "eigenvalue": _REMOVED,
    "sparse_attention": _REMOVED,
    "elasticity": f'{_REMOVED}; "auto" batch keys adapt to the world size',
    "graph_harvesting": _REMOVED,
    "curriculum_learning": _REMOVED,
    "progressive_layer_drop": _REMOVED,
}
"""Top-level keys of earlier DeepSpeed versions -> what to do. Faults, because DeepSpeed 0.19
ignores them silently."""

REMOVED_ZERO = ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
"""Keys of zero_optimization in earlier DeepSpeed versions."""


def _asked(block: Any) -> bool:
    """Whether a block turns its feature on: it is neither empty nor has "enabled": false."""
    return bool(block) and block.get("enabled") is not False


FEATURES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "scheduler": (
        bool,
        "the schedule is ultralytics': lr0, lrf, cos_lr and warmup_epochs; remove it; for WarmupLR "
        "and similar schedules use --set lr0=(warmup_max_lr) --set "
        "warmup_epochs=(warmup_num_steps, in epochs) --set lrf=(last rate / lr0), with --cos-lr "
        "for a cosine",
    ),
    "gradient_allreduce_op": (
        lambda value: value == "sum",
        "gradients are averaged over ranks, so that lr0 has ultralytics' meaning; remove it",
    ),
    "sequence_parallel_size": (lambda value: value != 1, "a detector has no sequence to split"),
    "tensor_parallel": (
        _asked,
        "tensor parallelism is for transformers and does not split convolutions",
    ),
    "expert_parallel": (_asked, "a detector has no experts"),
    "hybrid_engine": (_asked, "it is for text generation"),
    "data_efficiency": (_asked, "yolods' sampler has no curriculum"),
    "autotuning": (_asked, "it starts runs of its own, which yolods does not support"),
    "weight_quantization": (_asked, "yolods does not quantise weights"),
    "compile": (lambda block: bool(block.get("deepcompile")), "DeepCompile has not been tested"),
    "datastates_ckpt": (
        lambda block: block is not None and block is not False,
        "yolods writes the checkpoints",
    ),
    "managed_gradient_accumulation": (
        lambda value: value is False,
        "accumulation rises during warm-up, and yolods tells DeepSpeed where a step ends; remove "
        "it",
    ),
}
"""Unsupported features of DeepSpeed: key -> (whether a value turns it on, the reason)."""


def check_keys(raw: Mapping[str, Any], where: str, faults: Faults) -> dict[str, Any]:
    """Check every key and type of a DeepSpeed JSON.

    Returns:
        the keys with permitted values, with numbers in the key's own type (5e8 as an integer).
        Faulty keys are left out, so that later checks need not test types again; so are "auto" and
        null, which mean a missing key.
    """
    sound: dict[str, Any] = {}
    for key, value in raw.items():
        if key in REMOVED:
            faults.add(f'{where}: "{key}": {REMOVED[key]}')
        elif key not in TOP:
            faults.add(f'{where}: unknown key "{key}"{nearest(key, TOP)}')
        else:
            _check(sound, key, value, TOP[key], f'{where}: "{key}"', faults)
    # Only checked values: `turned_on` may assume the type that the key's rule permits.
    for key, (turned_on, reason) in FEATURES.items():
        if key in sound and turned_on(sound[key]):
            faults.add(f'{where}: "{key}" is not supported: {reason}')
    return sound


def _check(
    sound: dict[str, Any],
    key: str,
    value: Any,
    rule: Rule | Mapping[str, Any],
    where: str,
    faults: Faults,
) -> None:
    """Put `value` into `sound` if `rule` permits it, else add a fault."""
    # Files for other trainers, such as Hugging Face's, contain null and "auto" in many places, even
    # where DeepSpeed itself accepts neither.
    if value is None or (value == "auto" and isinstance(rule, Rule) and rule is not _BLOCK):
        return
    if isinstance(rule, Rule):
        good, parsed = check(rule, value, where, faults)
        sound |= {key: parsed} if good and parsed is not None else {}
    elif not isinstance(value, Mapping):
        hint = (
            f'; write {{"stage": {int(value)}}}'
            if key == "zero_optimization" and isinstance(value, bool)
            else ""
        )
        faults.add(f"{where} is {shown(value)}: it must be an object {{...}}{hint}")
    else:
        sound[key] = _sound_block(value, rule, where, faults)


def _sound_block(
    block: Mapping[str, Any], rules: Mapping[str, Any], where: str, faults: Faults
) -> dict[str, Any]:
    """The keys and values of a block that its rules permit; every other key is a fault."""
    sound: dict[str, Any] = {}
    for key, value in block.items():
        if key in rules:
            _check(sound, key, value, rules[key], f"{where}.{key}", faults)
        # Without asking for the block: only "zero_optimization" ever had keys of these names.
        elif key in REMOVED_ZERO:
            faults.add(f"{where}.{key}: {_REMOVED}")
        else:
            faults.add(f'{where}: unknown key "{key}"{nearest(key, rules)}')
    return sound
