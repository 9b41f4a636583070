"""Reports keys of a DeepSpeed JSON that have no effect, each once, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolods.config.deepspeed.keys import ON_BY_DEFAULT
from yolods.config.deepspeed.limits import JsonSettings

_OWN_FILES = 'yolods writes its own checkpoints and models; see "yolods".checkpoint'
UNUSED: dict[str, str] = {
    "checkpoint": _OWN_FILES,
    "aio": "it is for states on NVMe, which yolods does not support",
    "compile": "yolods does not compile models",
    "dataloader_drop_last": "yolods has its own loader; every step is full, across epochs",
    "use_data_before_expert_parallelism": "a detector has no experts",
    "disable_allgather": "DeepSpeed 0.19 no longer reads it",
    "allgather_size": 'DeepSpeed reads "zero_optimization".allgather_bucket_size instead',
    "vocabulary_size": "a detector has no vocabulary",
    "seq_parallel_communication_data_type": "a detector has no sequence to split",
    "log_level": "train.log shows DeepSpeed's messages from INFO up, the screen its warnings",
}
"""Top-level keys that are not passed to DeepSpeed -> the reason."""

OFF: tuple[str, ...] = (
    *(
        "scheduler",
        "tensor_parallel",
        "expert_parallel",
        "hybrid_engine",
        "data_efficiency",
        "autotuning",
    ),
    *(
        "weight_quantization",
        "datastates_ckpt",
        "managed_gradient_accumulation",
        "sequence_parallel_size",
    ),
)
"""Features that are faults when on (`keys.FEATURES`). When off, their keys are not passed to
DeepSpeed either."""

_STAGED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("reduce_bucket_size", "overlap_comm"), (0, 1, 2, 3)),
    **dict.fromkeys(("contiguous_gradients", "reduce_scatter"), (1, 2, 3)),
    **dict.fromkeys(
        ("allgather_partitions", "allgather_bucket_size", "use_multi_rank_bucket_allreduce"), (1, 2)
    ),
    **dict.fromkeys(("round_robin_gradients", "ignore_unused_parameters"), (1, 2)),
    **dict.fromkeys(
        ("sub_group_size", "leaf_module", "memory_efficient_linear", "override_module_apply"), (3,)
    ),
    **dict.fromkeys(
        ("use_all_reduce_for_fetch_params", "allgather_sequential", "prefetch_bucket_size"), (3,)
    ),
    **dict.fromkeys(
        ("param_persistence_threshold", "model_persistence_threshold", "max_live_parameters"), (3,)
    ),
    **dict.fromkeys(
        ("max_reuse_distance", "module_granularity_threshold", "zero_hpz_partition_size"), (3,)
    ),
    **dict.fromkeys(("zero_quantized_weights", "zero_quantized_gradients"), (3,)),
    **dict.fromkeys(
        ("zero_quantized_nontrainable_weights", "log_trace_cache_warnings", "enable_sanity_checks"),
        (3,),
    ),
}
"""Keys of zero_optimization without the prefix "stage3_" -> the stages that read them."""
_FOR_FILES = (
    *("load_from_fp32_weights", "elastic_checkpoint", "pipeline_loading_checkpoint"),
    *("gather_16bit_weights_on_model_save", "gather_fp16_weights_on_model_save"),
)
_FOR_NVME = (
    *(
        "nvme_path",
        "buffer_count",
        "buffer_size",
        "max_in_cpu",
        "pipeline_read",
        "pipeline_write",
        "fast_init",
    ),
)
_OF_REDUCTION = (
    *("reduce_bucket_size", "reduce_scatter", "contiguous_gradients"),
    "use_multi_rank_bucket_allreduce",
)
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(ON_BY_DEFAULT, True),
    "zero_hpz_partition_size": 1,
    "module_granularity_threshold": 0,
}
"""Key -> the value that changes nothing, where that is not false."""


def unused_keys(settings: JsonSettings, where: str) -> tuple[str, ...]:
    """One line per reason for the keys that a user set and that change nothing.

    Args:
        where: the JSON's name in the lines.
    """
    # One line per reason, not per key: a JSON made for ZeRO-3 may contain ten such keys.
    told: dict[str, list[str]] = {}
    for key, reason in _found(settings):
        told.setdefault(reason, []).append(key)
    return tuple(
        f"{where}: no effect: {', '.join(keys)} ({reason})" for reason, keys in told.items()
    )


def _found(settings: JsonSettings) -> list[tuple[str, str]]:
    """The keys without effect, each with its reason."""
    sound, found = settings.sound, []
    for key, reason in UNUSED.items():
        if sound.get(key) not in (None, False, {}):
            found.append((f'"{key}"', reason))
    if sound.get("zero_allow_untested_optimizer") is False:
        found.append(('"zero_allow_untested_optimizer" false', "yolods uses torch's optimizers"))
    zero = (*_zero(settings), *_zero_offload(settings))
    found += [(f'"zero_optimization".{key}', reason) for key, reason in zero]
    found += _precision(settings)
    for block, key in (
        ("tensorboard", "output_path"),
        ("csv_monitor", "output_path"),
        ("flops_profiler", "output_file"),
    ):
        given = sound.get(block) or {}
        if given.get("enabled") and given.get(key):
            found.append((f'"{block}".{key}', "it is written to deepspeed/ in the run's folder"))
    if settings.pipelined and (sound.get("timers") or {}).get("throughput"):
        found.append(
            ('"timers".throughput', "DeepSpeed's timer does not see the passes of a pipeline")
        )
    found += _compression_keys(settings)
    if sound.get("zero_force_ds_cpu_optimizer") and not settings.offload["optimizer"]:
        found.append(
            ('"zero_force_ds_cpu_optimizer"', "no optimizer states are kept in host memory")
        )
    return found


def _zero(settings: JsonSettings) -> list[tuple[str, str]]:
    """The keys of zero_optimization without effect, each with its reason; not those of offload."""
    found = []
    for key, value in settings.zero.items():
        name = key.removeprefix("stage3_")
        stages = _STAGED.get(name)
        if not _changes_something(name, value):
            continue
        if name in _FOR_FILES:
            found.append((key, _OWN_FILES))
        elif key == "cpu_offload_use_pin_memory":
            found.append((key, '"offload_optimizer" and "offload_param" have pin_memory'))
        elif name == "save_muon_momentum_buffer_in_memory":
            found.append((key, "it is for Muon, with states on NVMe"))
        elif stages is not None and settings.zero_stage not in stages:
            readers = " and ".join(", ".join(map(str, stages)).rsplit(", ", 1))
            read = "reads" if len(stages) == 1 else "read"
            found.append((key, f"only ZeRO stage {readers} {read} it, not {settings.zero_stage}"))
        elif settings.pipelined and value and name in _pipelined(settings.zero_stage):
            found.append(
                (key, "a pipeline's stage reduces its gradients once, after all micro-batches")
            )
        elif settings.compressed and name in _OF_REDUCTION:
            found.append((key, "compression replaces DeepSpeed's reduction of gradients"))
    return found


def _pipelined(stage: int) -> tuple[str, ...]:
    """Keys that have no effect in a pipeline."""
    keys = ("overlap_comm", "contiguous_gradients")
    return keys if stage else (*keys, "reduce_bucket_size")


def _zero_offload(settings: JsonSettings) -> list[tuple[str, str]]:
    """Keys without effect in the blocks that offload, each with its reason."""
    found = []
    for target in ("offload_optimizer", "offload_param"):
        block = settings.zero.get(target) or {}
        for key in block:
            if key in _FOR_NVME and _changes_something(key, block[key]):
                found.append(
                    (f"{target}.{key}", "it is for states on NVMe, which yolods does not support")
                )
            elif key == "cpuadam_cores_perc":
                found.append((f"{target}.{key}", "only the unsupported super_offload reads it"))
    return found


def _changes_something(name: str, value: Any) -> bool:
    """Whether a value changes anything: it is not empty and not the default."""
    nothing = _NOTHING.get(name, False)
    return (
        value is not None
        and value != {}
        and (value is not nothing if isinstance(value, bool) else value != nothing)
    )


def _compression_keys(settings: JsonSettings) -> list[tuple[str, str]]:
    if settings.compressed:
        alone = settings.world_size == 1
        return [('"yolods".compression', "one rank sends no gradients")] if alone else []
    own = settings.sound.get("yolods")
    given = own.get("compression") if isinstance(own, Mapping) else None
    return [
        (f'"yolods".compression.{key}', '"kind" is "none"; set it to "powersgd"')
        for key in (given if isinstance(given, Mapping) else ())
        if key != "kind"
    ]


def _precision(settings: JsonSettings) -> list[tuple[str, str]]:
    """Keys without effect in the blocks about data types."""
    sound, found = settings.sound, []
    if "keep_in_fp32_modules" in (sound.get("data_types") or {}):
        found.append(('"data_types".keep_in_fp32_modules', "all buffers of a detector stay fp32"))
    if (sound.get("fp16") or {}).get("auto_cast"):
        found.append(('"fp16".auto_cast', "images already have the model's data type"))
    bf16 = sound.get("bf16") or sound.get("bfloat16") or {}
    types = (settings.zero_stage, settings.gradients, settings.precision)
    if bf16.get("immediate_grad_update") and types != (1, "fp32", "bf16"):
        found.append(
            ('"bf16".immediate_grad_update', "it belongs to ZeRO stage 1 with gradients in fp32")
        )
    if bf16.get("check_grad_overflow") is False and not settings.stock:
        found.append(
            ('"bf16".check_grad_overflow false', 'every step is checked; see "yolods".overflow')
        )
    return found
