"""Every key that DeepSpeed reads: it works, is refused, or its loss is said; a new key of a new
version is noticed.

The keys come from DeepSpeed itself: from the fields of its models, and from what its reader asks a
dictionary for.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest

from yolods.config.deepspeed.config import DeepSpeedConfig, resolve
from yolods.config.deepspeed.keys import FEATURES, ON_BY_DEFAULT, REMOVED, REMOVED_ZERO, TOP
from yolods.config.deepspeed.pipeline import PipelineConfig
from yolods.config.deepspeed.recompute import RecomputeConfig
from yolods.config.deepspeed.unused_keys import UNUSED
from yolods.config.deepspeed.yolods_block import YolodsConfig
from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.config.optimizers.unsupported import UNSUPPORTED
from yolods.errors import Faults
from yolods.parsing.rules import Rule

WORKS, REFUSED, SAID = "works", "refused", "said"

Z0, Z1, Z2, Z3 = ({"zero_optimization": {"stage": stage}} for stage in range(4))
HOST = {
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    }
}
BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True}, **Z1}
CAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
PIPE = {"pipeline": {"stages": 2}}

Row = tuple[str, str, Any, dict[str, Any]]


def rows(
    verdict: str, names: str, value: Any, base: dict[str, Any] = Z1, prefix: str = ""
) -> list[Row]:
    """A row for each name: what comes of this value, beside what else the JSON holds."""
    return [(f"{prefix}{name}", verdict, value, base) for name in names.split()]


def zero(verdict: str, names: str, value: Any, base: dict[str, Any]) -> list[Row]:
    """The same under zero_optimization."""
    return rows(verdict, names, value, base, "zero_optimization.")


_Z3_COUNTS = """prefetch_bucket_size stage3_prefetch_bucket_size param_persistence_threshold
    stage3_param_persistence_threshold model_persistence_threshold stage3_model_persistence_threshold
    max_live_parameters
    stage3_max_live_parameters max_reuse_distance stage3_max_reuse_distance sub_group_size"""  # noqa: E501
_Z3_FLAGS = """use_all_reduce_for_fetch_params stage3_use_all_reduce_for_fetch_params allgather_sequential
    stage3_allgather_sequential log_trace_cache_warnings enable_sanity_checks"""  # noqa: E501
_GRANULARITY = "module_granularity_threshold stage3_module_granularity_threshold"
_MODEL_FILES = """gather_16bit_weights_on_model_save stage3_gather_16bit_weights_on_model_save
    stage3_gather_fp16_weights_on_model_save pipeline_loading_checkpoint elastic_checkpoint"""

TABLE: list[Row] = [
    *rows(WORKS, "train_batch_size", 64),
    *rows(WORKS, "train_micro_batch_size_per_gpu", 8),
    *rows(WORKS, "gradient_accumulation_steps", 4),
    *rows(WORKS, "gradient_clipping", 1.0),
    *rows(WORKS, "steps_per_print", 10),
    *rows(WORKS, "communication_data_type", "bf16"),
    *rows(WORKS, "gradient_predivide_factor", 2.0),
    *rows(REFUSED, "gradient_predivide_factor", 2.0, Z2),
    *rows(
        WORKS,
        "gradient_predivide_factor",
        2.0,
        {"zero_optimization": {"stage": 2, "reduce_scatter": False}},
    ),
    *rows(
        REFUSED,
        "gradient_predivide_factor",
        2.0,
        {"zero_optimization": {"stage": 3, "reduce_scatter": False}},
    ),
    *rows(WORKS, "prescale_gradients", True, Z0),
    *rows(REFUSED, "prescale_gradients", True, Z3),
    *rows(WORKS, "gradient_allreduce_op", "mean"),
    *rows(REFUSED, "gradient_allreduce_op", "sum"),
    *rows(WORKS, "sequence_parallel_size", 1),
    *rows(REFUSED, "sequence_parallel_size", 2),
    *rows(WORKS, "managed_gradient_accumulation", True),
    *rows(REFUSED, "managed_gradient_accumulation", False),
    *rows(WORKS, "dump_state disable_python_gc zero_allow_untested_optimizer", True),
    *rows(SAID, "zero_allow_untested_optimizer", False),
    *rows(WORKS, "wall_clock_breakdown memory_breakdown", True),
    *rows(REFUSED, "wall_clock_breakdown memory_breakdown", True, PIPE),
    *rows(WORKS, "zero_force_ds_cpu_optimizer", False, HOST),
    *rows(REFUSED, "zero_force_ds_cpu_optimizer", True, HOST),
    *rows(SAID, "zero_force_ds_cpu_optimizer", True),
    *rows(SAID, "dataloader_drop_last use_data_before_expert_parallelism disable_allgather", True),
    *rows(SAID, "vocabulary_size allgather_size", 1000),
    *rows(SAID, "seq_parallel_communication_data_type", "bf16"),
    *rows(SAID, "log_level", "info"),
    *rows(REFUSED, "datastates_ckpt", {"host_cache_size": 1}),
    *rows(REFUSED, "scheduler", {"type": "WarmupLR", "params": {}}),
    *rows(REFUSED, "hybrid_engine expert_parallel autotuning data_efficiency", {"enabled": True}),
    *rows(WORKS, "hybrid_engine expert_parallel autotuning data_efficiency", {"enabled": False}),
    *rows(REFUSED, "tensor_parallel", {"autotp_size": 2}),
    *rows(REFUSED, "weight_quantization", {"quantized_initialization": {"num_bits": 8}}),
    *rows(WORKS, "optimizer", {"type": "AdamW", "params": {"lr": 0.001}}),
    *rows(WORKS, "optimizer.type", "SGD", {**Z1, "optimizer": {}}),
    *rows(WORKS, "optimizer.params", {"lr": 0.001}, {**Z1, "optimizer": {"type": "SGD"}}),
    *rows(REFUSED, "optimizer.legacy_fusion", True, {**Z1, "optimizer": {"type": "SGD"}}),
    *rows(WORKS, "zero_optimization.stage", 1),
    *rows(REFUSED, "zero_optimization.stage", 4),
    *zero(
        WORKS,
        "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions",
        False,
        Z2,
    ),
    *zero(SAID, "use_multi_rank_bucket_allreduce allgather_partitions", False, Z3),
    *zero(SAID, "round_robin_gradients", True, Z3),
    *zero(SAID, "contiguous_gradients reduce_scatter", False, Z0),
    *zero(WORKS, "reduce_bucket_size allgather_bucket_size", 1000, Z2),
    *zero(WORKS, "reduce_bucket_size", 1000, Z0),
    *zero(SAID, "allgather_bucket_size", 1000, Z0),
    *zero(WORKS, "overlap_comm round_robin_gradients", True, Z2),
    *zero(WORKS, "overlap_comm", False, Z0),
    *zero(SAID, "overlap_comm", True, {**Z1, **PIPE}),
    *zero(WORKS, "ignore_unused_parameters", False, Z2),
    *zero(REFUSED, "compute_grad_norm", False, Z2),
    *zero(REFUSED, "legacy_stage1 parameter_alignment", True, Z1),
    *zero(REFUSED, "zenflow", {}, Z2),
    *zero(SAID, "load_from_fp32_weights", False, Z2),
    *zero(SAID, _MODEL_FILES, True, Z3),
    *zero(SAID, "save_muon_momentum_buffer_in_memory", True, Z3),
    *zero(WORKS, "cpu_offload", True, Z2),
    *zero(REFUSED, "cpu_offload cpu_offload_param", True, HOST),
    *zero(WORKS, "cpu_offload_param", True, Z3),
    *zero(REFUSED, "cpu_offload_param", True, Z2),
    *zero(SAID, "cpu_offload_use_pin_memory", True, Z2),
    *zero(WORKS, _Z3_COUNTS, 1000, Z3),
    *zero(SAID, _Z3_COUNTS, 1000, Z2),
    *zero(WORKS, _Z3_FLAGS, True, Z3),
    *zero(SAID, _Z3_FLAGS, True, Z1),
    *zero(
        REFUSED,
        "prefetch_bucket_size",
        1,
        {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 2}},
    ),
    *zero(WORKS, "memory_efficient_linear override_module_apply", False, Z3),
    *zero(SAID, "memory_efficient_linear override_module_apply", False, Z2),
    *zero(WORKS, _GRANULARITY, 0, Z3),
    *zero(REFUSED, _GRANULARITY, 100, Z3),
    *zero(SAID, _GRANULARITY, 100, Z1),
    *zero(WORKS, "zero_hpz_partition_size", 2, Z3),
    *zero(SAID, "zero_hpz_partition_size", 2, Z2),
    *zero(
        REFUSED,
        "zero_quantized_weights zero_quantized_gradients zero_quantized_nontrainable_weights",
        True,
        Z3,
    ),
    *zero(
        SAID,
        "zero_quantized_weights zero_quantized_gradients zero_quantized_nontrainable_weights",
        True,
        Z2,
    ),
    *rows(WORKS, "classes names name_suffixes", ["model.2"], Z3, "zero_optimization.leaf_module."),
    *rows(WORKS, "device", "cpu", Z2, "zero_optimization.offload_optimizer."),
    *rows(REFUSED, "device", "nvme", Z2, "zero_optimization.offload_optimizer."),
    *rows(WORKS, "pin_memory", False, HOST, "zero_optimization.offload_optimizer."),
    *rows(REFUSED, "ratio", 0.5, HOST, "zero_optimization.offload_optimizer."),
    *rows(REFUSED, "super_offload", True, HOST, "zero_optimization.offload_optimizer."),
    *rows(SAID, "cpuadam_cores_perc", 0.5, HOST, "zero_optimization.offload_optimizer."),
    *rows(SAID, "nvme_path", "/x", HOST, "zero_optimization.offload_optimizer."),
    *rows(SAID, "buffer_count", 4, HOST, "zero_optimization.offload_optimizer."),
    *rows(
        SAID,
        "pipeline_read pipeline_write fast_init",
        True,
        HOST,
        "zero_optimization.offload_optimizer.",
    ),
    *rows(WORKS, "device", "cpu", Z3, "zero_optimization.offload_param."),
    *rows(REFUSED, "device", "cpu", Z2, "zero_optimization.offload_param."),
    *rows(WORKS, "pin_memory", False, HOST, "zero_optimization.offload_param."),
    *rows(SAID, "nvme_path", "/x", HOST, "zero_optimization.offload_param."),
    *rows(SAID, "buffer_count buffer_size max_in_cpu", 4, HOST, "zero_optimization.offload_param."),
    *rows(WORKS, "enabled", True, Z1, "bf16."),
    *rows(SAID, "immediate_grad_update", True, BF16, "bf16."),
    *rows(
        WORKS,
        "immediate_grad_update",
        True,
        {**BF16, **Z1, "data_types": {"grad_accum_dtype": "fp32"}},
        "bf16.",
    ),
    *rows(SAID, "check_grad_overflow", False, BF16, "bf16."),
    *rows(REFUSED, "bf16_master_weights_and_grads bf16_optimizer_states", True, BF16, "bf16."),
    *rows(REFUSED, "bf16_master_weights_and_grads bf16_optimizer_states", True, Z2, "bf16."),
    *rows(WORKS, "enabled", True, Z1, "fp16."),
    *rows(REFUSED, "enabled", True, Z0, "fp16."),
    *rows(
        WORKS,
        "loss_scale initial_scale_power loss_scale_window hysteresis min_loss_scale",
        8,
        FP16,
        "fp16.",
    ),
    *rows(WORKS, "consecutive_hysteresis", True, FP16, "fp16."),
    *rows(SAID, "auto_cast", True, FP16, "fp16."),
    *rows(REFUSED, "fp16_master_weights_and_grads", True, FP16, "fp16."),
    *rows(WORKS, "enabled", True, {"torch_autocast": {"dtype": "bfloat16"}}, "torch_autocast."),
    *rows(WORKS, "dtype", "bfloat16", {"torch_autocast": {"enabled": True}}, "torch_autocast."),
    *rows(REFUSED, "dtype", "int8", {"torch_autocast": {"enabled": True}}, "torch_autocast."),
    *rows(WORKS, "lower_precision_safe_modules", ["torch.nn.Conv2d"], CAST, "torch_autocast."),
    *rows(REFUSED, "lower_precision_safe_modules", ["Conv2d"], CAST, "torch_autocast."),
    *rows(WORKS, "enabled verbose debug prof_all", True, Z1, "comms_logger."),
    *rows(WORKS, "prof_ops", ["all_reduce"], Z1, "comms_logger."),
    *rows(REFUSED, "enabled", True, PIPE, "comms_logger."),
    *rows(WORKS, "enabled", True, Z1, "tensorboard."),
    *rows(WORKS, "enabled", True, Z1, "csv_monitor."),
    *rows(WORKS, "job_name", "mine", Z1, "tensorboard."),
    *rows(WORKS, "job_name", "mine", Z1, "csv_monitor."),
    *rows(REFUSED, "job_name", "../mine", Z1, "csv_monitor."),
    *rows(SAID, "output_path", "/x", {"tensorboard": {"enabled": True}}, "tensorboard."),
    *rows(SAID, "output_path", "/x", {"csv_monitor": {"enabled": True}}, "csv_monitor."),
    *rows(REFUSED, "enabled", True, Z1, "wandb."),
    *rows(WORKS, "group team project", "mine", Z1, "wandb."),
    *rows(REFUSED, "enabled", True, Z1, "comet."),
    *rows(WORKS, "project workspace api_key experiment_name experiment_key", "mine", Z1, "comet."),
    *rows(WORKS, "samples_log_interval", 10, Z1, "comet."),
    *rows(WORKS, "online", False, Z1, "comet."),
    *rows(WORKS, "mode", "get", Z1, "comet."),
    *rows(WORKS, "enabled", True, Z1, "flops_profiler."),
    *rows(REFUSED, "enabled", True, PIPE, "flops_profiler."),
    *rows(
        WORKS,
        "recompute_fwd_factor profile_step module_depth top_modules",
        1,
        Z1,
        "flops_profiler.",
    ),
    *rows(WORKS, "detailed", False, Z1, "flops_profiler."),
    *rows(SAID, "output_file", "/x/y", {"flops_profiler": {"enabled": True}}, "flops_profiler."),
    *rows(WORKS, "number_checkpoints", 4, Z1, "activation_checkpointing."),
    *rows(
        REFUSED,
        """partition_activations contiguous_memory_optimization cpu_checkpointing synchronize_checkpoint_boundary
        profile""",  # noqa: E501
        True,
        Z1,
        "activation_checkpointing.",
    ),
    *rows(SAID, "checkpoint.tag_validation", "Warn"),
    *rows(REFUSED, "checkpoint.tag_validation", "Maybe"),
    *rows(
        SAID,
        "load_universal use_node_local_storage checkpoint_serialization",
        True,
        Z1,
        "checkpoint.",
    ),
    *rows(SAID, "checkpoint.parallel_write", {"pipeline_stage": True}),
    *rows(SAID, "checkpoint.parallel_write.pipeline_stage", True),
    *rows(SAID, "checkpoint.writer", {"type": "fast"}),
    *rows(SAID, "checkpoint.writer.type", "fast"),
    *rows(SAID, "io_buffer_size io_multiplier", 4, Z1, "checkpoint.writer."),
    *rows(SAID, "io_buffer_double show_statistics decoupled", True, Z1, "checkpoint.writer."),
    *rows(SAID, "checkpoint.writer.data_parallel", "replica"),
    *rows(WORKS, "data_types.grad_accum_dtype", "fp32", {**BF16, **Z1}),
    *rows(WORKS, "data_types.grad_accum_dtype", "fp32", {**BF16, **Z2}),
    *rows(REFUSED, "data_types.grad_accum_dtype", "fp32", {**BF16, **Z0}),
    *rows(REFUSED, "data_types.grad_accum_dtype", "fp32", {**BF16, **Z1, **PIPE}),
    *rows(WORKS, "data_types.param_dtype", "bf16", {**BF16, **Z1}),
    *rows(REFUSED, "data_types.param_dtype", "bf16", Z1),
    *rows(WORKS, "data_types.buffer_dtype", "fp32", Z1),
    *rows(REFUSED, "data_types.buffer_dtype", "bf16", {**BF16, **Z1}),
    *rows(SAID, "data_types.keep_in_fp32_modules", ["bn"], BF16),
    *rows(SAID, "block_size queue_depth intra_op_parallelism", 8, Z1, "aio."),
    *rows(SAID, "single_submit overlap_events use_gds", True, Z1, "aio."),
    *rows(WORKS, "timers.throughput", {"enabled": True}),
    *rows(SAID, "timers.throughput", {"enabled": True}, PIPE),
    *rows(WORKS, "enabled synchronized", False, Z1, "timers.throughput."),
    *rows(REFUSED, "compile.deepcompile", True),
]
"""Key, what comes of it, a value, and the JSON that the value is put into."""
TABLE += rows(
    SAID,
    """autoep_non_moe free_activation offload_activation offload_activation_pin_memory offload_opt_states double_buffer
    symmetric_memory debug_log offload_parameters sync_before_reduce sync_after_reduce sync_before_allgather
    sync_after_allgather keep_int_input_tensors keep_all_input_tensors""",  # noqa: E501
    True,
    Z1,
    "compile.",
)
TABLE += rows(SAID, "free_activation_threshold", 5, Z1, "compile.") + rows(
    SAID, "passes", ["z1"], Z1, "compile."
)

OURS = {"pipeline", "yolods"}
"""Blocks whose keys are our own."""
WHOLE = {
    *(
        "zero_optimization",
        "bf16",
        "fp16",
        "torch_autocast",
        "comms_logger",
        "tensorboard",
        "csv_monitor",
        "wandb",
    ),
    *(
        "comet",
        "flops_profiler",
        "activation_checkpointing",
        "checkpoint",
        "data_types",
        "aio",
        "timers",
        "compile",
    ),
    *(
        "zero_optimization.offload_optimizer",
        "zero_optimization.offload_param",
        "zero_optimization.leaf_module",
    ),
    "bfloat16",  # the same as bf16
}
"""Blocks that the table holds key by key."""


def put(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The JSON with a value at a dotted path."""
    raw = json.loads(json.dumps(base))
    *blocks, key = path.split(".")
    inner = raw
    for block in blocks:
        inner = inner.setdefault(block, {})
    inner[key] = value
    return raw


def read(raw: dict[str, Any], **context: Any) -> tuple[DeepSpeedConfig, list[str]]:
    faults = Faults()
    settings = {
        "path": Path("ds.json"),
        "batch_size": None,
        "world_size": 2,
        "device": "cpu",
        **context,
    }
    config = resolve(raw, faults=faults, **settings)
    return config, list(faults)


@pytest.mark.parametrize(
    ("path", "verdict", "value", "base"), TABLE, ids=lambda each: str(each)[:40]
)
def test_every_key_works_or_is_refused_by_name_or_said(
    path: str, verdict: str, value: Any, base: dict
) -> None:
    raw, name = put(base, path, value), path.split(".")[-1]
    config, faults = read(raw, device="cuda" if path.startswith("fp16") else "cpu")
    if verdict == REFUSED:
        assert len(faults) == 1 and "\n" not in faults[0], faults
        assert name.removeprefix("cpu_") in faults[0] or path.split(".")[-2] in faults[0]
        return
    assert faults == []
    said = [note for note in config.notes if name in note or f'"{path.split(".")[0]}"' in note]
    assert bool(said) == (verdict == SAID), config.notes
    assert all(note.startswith("ds.json: no effect: ") for note in config.notes)


class Asked(dict):
    """A dictionary that notes what it is asked for, as are those in it."""

    names: ClassVar[set[str]] = set()

    def __init__(self, given: dict[str, Any], path: str = "") -> None:
        super().__init__({key: Asked(value, f"{path}{key}.") if isinstance(value, dict) else value
                          for key, value in given.items()})  # fmt: skip
        self.path = path

    def __copy__(self) -> Asked:
        return self

    def _note(self, key: Any) -> Any:
        self.names.add(f"{self.path}{key}")
        return key

    def __contains__(self, key: object) -> bool:
        return super().__contains__(self._note(key))

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(self._note(key))

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(self._note(key), default)

    def keys(self) -> Any:
        return self


def asked_for() -> set[str]:
    """Keys that DeepSpeed's own reader looks for, in a JSON that has every block which it reads by
    hand."""
    from deepspeed.runtime.config import DeepSpeedConfig as Stock

    blocks = {
        "optimizer": {"type": "AdamW"},
        "torch_autocast": {"dtype": "bfloat16"},
        "flops_profiler": {"enabled": False},
        "activation_checkpointing": {"number_checkpoints": None},
        "checkpoint": {"writer": {"type": "python"}, "parallel_write": {"pipeline_stage": False}},
        "data_types": {"grad_accum_dtype": "fp32"},
        "aio": {"block_size": 1},
        "timers": {"throughput": {}},
    }
    Asked.names.clear()
    Stock(Asked({"train_batch_size": 1, **blocks}))
    return {name for name in Asked.names if not name.startswith("throughput")}


def declared() -> set[str]:
    """Keys of DeepSpeed's models."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    models = {
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "comet": CometConfig,
        "csv_monitor": CSVConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }
    found = set()
    for path, model in models.items():
        for name, field in model.model_fields.items():
            found |= {f"{path}.{each}" for each in (name, field.alias) if each}
    return found


def test_the_table_holds_every_key_that_the_installed_deepspeed_reads() -> None:
    theirs = asked_for() | declared()
    removed = {*REMOVED, *(f"zero_optimization.{name}" for name in REMOVED_ZERO)}
    ignored = {name for name in theirs if name.split(".")[0] in {"scheduler", *OURS}}
    held = {path for path, *_ in TABLE}
    assert theirs - removed - ignored - WHOLE - held == set(), "keys that the table does not know"
    # Read only between ranks, and for a form of zero_optimization that is refused.
    elsewhere = {"sequence_parallel_size", "allgather_size"}
    assert held - theirs == elsewhere, "keys that DeepSpeed no longer reads"


def test_the_schema_and_the_table_know_the_same_keys() -> None:
    def paths(rules: Any, prefix: str = "") -> set[str]:
        found = set()
        for key, rule in rules.items():
            found.add(f"{prefix}{key}")
            found |= set() if isinstance(rule, Rule) else paths(rule, f"{prefix}{key}.")
        return found

    known = {path for path in paths(TOP) if path.split(".")[0] not in {"bfloat16", *OURS}}
    held = {
        path
        for path, *_ in TABLE
        if not path.startswith(("optimizer.", "activation_checkpointing."))
    }
    assert known - WHOLE == held


def test_switches_that_ask_for_nothing_are_deepspeeds_defaults() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    defaults = {name: field.default for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert {name for name, value in defaults.items() if value is True} == set(ON_BY_DEFAULT)
    assert (
        defaults["zero_hpz_partition_size"] == 1 and defaults["module_granularity_threshold"] == 0
    )


BLOCKS = [path for path, rule in TOP.items() if not isinstance(rule, Rule)]


@pytest.mark.parametrize(
    "block", [*BLOCKS, "activation_checkpointing", "yolods", "pipeline", "optimizer"]
)
def test_a_typo_within_a_block_is_refused(block: str) -> None:
    _, faults = read(
        {block: {"enabledd": True, **({"type": "SGD"} if block == "optimizer" else {})}}
    )
    assert len(faults) == 1 and "unknown key" in faults[0] and "enabledd" in faults[0]


@pytest.mark.parametrize(
    "block", [name for name, rule in TOP.items() if name in FEATURES and isinstance(rule, Rule)]
)
def test_a_feature_that_is_not_plainly_off_is_refused(block: str) -> None:
    """`{"enable": true}` is not off; DeepSpeed would not say so."""
    if isinstance(FEATURES[block][1], str) and block in {
        "hybrid_engine",
        "autotuning",
        "data_efficiency",
    }:
        assert len(read({block: {"enable": True}})[1]) == 1
        assert read({block: {"enabled": False, "what": 1}})[1] == []
        assert block not in read({block: {"enabled": False, "what": 1}})[0].for_initialize()


def test_auto_anywhere_stands_for_a_missing_key() -> None:
    """Files written for other trainers have it in places where DeepSpeed itself raises."""
    for path, _, value, base in TABLE:
        if (
            path.split(".")[0] in {"optimizer", "activation_checkpointing"}
            or path in TOP
            or isinstance(value, dict)
        ):
            continue
        config, faults = read(put(base, path, "auto"))
        assert not any("'auto'" in fault for fault in faults), path
        assert '"auto"' not in config.resolved
    for path in [
        name
        for name, rule in TOP.items()
        if isinstance(rule, Rule) and "object" not in rule.permitted
    ]:
        config, faults = read({path: "auto"})
        assert faults == [] and '"auto"' not in config.resolved, path


def test_null_anywhere_stands_for_a_missing_key() -> None:
    """As the manual says, in blocks that DeepSpeed has no word for, too."""
    blocks = [
        name
        for name, rule in TOP.items()
        if not isinstance(rule, Rule) or "object" in rule.permitted
    ]
    paths = {
        path: base
        for path, _, _, base in TABLE
        if path.split(".")[0] not in {*REMOVED, "optimizer"}
    }
    own = {f"yolods.{group.name}": {} for group in fields(YolodsConfig)}
    own |= {f"pipeline.{setting.name}": {} for setting in fields(PipelineConfig)}
    own |= {f"activation_checkpointing.{setting.name}": {} for setting in fields(RecomputeConfig)}
    for path, base in {**paths, **own, **{name: {} for name in blocks}}.items():
        if path.split(".")[-1] in REMOVED_ZERO:
            continue
        faults = read(put(base, path, None))[1]
        assert not any("empty" in fault for fault in faults), path
        if not base:
            assert faults == [], path
    sgd = {"type": "SGD", "params": None, "legacy_fusion": None}
    assert (
        read({"optimizer": sgd})[0].optimizer
        == read({"optimizer": {"type": "SGD"}})[0].optimizer
        is not None
    )


def test_a_comms_logger_that_is_off_is_not_handed_on() -> None:
    """To DeepSpeed the block's presence means that it is on."""
    assert "comms_logger" not in read({"comms_logger": {"enabled": False}})[0].for_initialize()
    assert "comms_logger" not in read({"comms_logger": {}})[0].for_initialize()
    assert read({"comms_logger": {"enabled": True}})[0].for_initialize()["comms_logger"] == {
        "enabled": True
    }


@pytest.mark.parametrize(
    ("block", "runs", "waits"),
    [
        ({}, False, False),
        ({"timers": {}}, False, False),
        ({"timers": {"throughput": {}}}, False, False),
        ({"timers": {"throughput": {"enabled": False}}}, False, False),
        ({"timers": {"throughput": {"enabled": True}}}, True, True),
        ({"timers": {"throughput": {"synchronized": True}}}, True, True),
        ({"timers": {"throughput": {"synchronized": False}}}, True, False),
    ],
)
def test_deepspeeds_timer_waits_for_the_gpu_only_where_it_is_asked_to_which_is_said(
    block: dict[str, Any], runs: bool, waits: bool
) -> None:
    from deepspeed.utils.config import get_timers_config
    from deepspeed.utils.timer import ThroughputTimer

    config, faults = read(block | Z1, device="cuda")
    assert faults == []
    timer = ThroughputTimer(get_timers_config(config.for_initialize()), batch_size=1)
    timer.start()
    assert (timer.started, timer.started and timer.config.synchronized) == (runs, waits)
    assert (
        len([note for note in config.notes if '"timers".throughput: the host waits' in note])
        == waits
    )
    assert read(block | Z1, device="cpu")[0].notes == ()


def test_what_has_no_effect_is_not_handed_on() -> None:
    raw = {
        "checkpoint": {"load_universal": True},
        "aio": {"use_gds": True},
        "log_level": "info",
        "vocabulary_size": 7,
    }
    config, faults = read(raw)
    assert faults == [] and len(config.notes) == len(raw)
    assert not set(UNUSED) & config.for_initialize().keys()


def test_keys_of_another_stage_are_said_in_one_line() -> None:
    raw = {"zero_optimization": {"stage": 1, "stage3_max_live_parameters": 5, "sub_group_size": 5}}
    assert read(raw)[0].notes == (
        'ds.json: no effect: "zero_optimization".stage3_max_live_parameters, '
        '"zero_optimization".sub_group_size '
        "(only ZeRO stage 3 reads it, not 1)",
    )


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json")), ids=lambda f: f.stem
)
def test_ready_files_ask_for_nothing_that_has_no_effect(file: Path) -> None:
    raw = json.loads(file.read_text("utf-8"))
    assert read(raw, world_size=8, device="cuda")[0].notes == ()


def test_the_first_tutorials_json_is_told_what_to_write_instead_of_its_scheduler() -> None:
    raw = {
        "train_batch_size": 16,
        "steps_per_print": 2000,
        "optimizer": {
            "type": "Adam",
            "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
        },
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000},
        },
        "wall_clock_breakdown": False,
    }
    (fault,) = read(raw)[1]
    assert all(word in fault for word in ("lr0", "warmup_epochs", "lrf", "cos_lr", "--set lr0="))
    del raw["scheduler"]
    assert read(raw)[1] == []


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_optimizer_that_is_not_trained_with_is_refused_with_the_reason(name: str) -> None:
    (fault,) = read({"optimizer": {"type": name}})[1]
    assert f"type '{name}' is not supported, because " in fault and "did you mean" not in fault


def test_every_optimizer_that_deepspeed_knows_is_trained_with_or_refused_with_the_reason() -> None:
    import torch
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    theirs = {name.lower() for name in DEEPSPEED_OPTIMIZERS}
    theirs |= {
        name.lower()
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    }
    assert theirs <= {name.lower() for name in (*OPTIMIZERS, *UNSUPPORTED)}
    assert not {name.lower() for name in OPTIMIZERS} & {name.lower() for name in UNSUPPORTED}


DEEPSPEEDS_OWN = {"torch_adam", "adam_w_mode", "bias_correction", "fp32_optimizer_states"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_argument_of_an_optimizer_is_known(name: str) -> None:
    """torch's own signature decides; two that no training step can use are refused by name."""
    import torch

    theirs = set(inspect.signature(getattr(torch.optim, name)).parameters) - {
        "params",
        "differentiable",
    }
    by_another_name = {"decoupled_weight_decay"} if name == "Adam" else set()  # which is AdamW
    assert set(OPTIMIZERS[name].params) - DEEPSPEEDS_OWN == theirs - by_another_name


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("RMSprop", {"fused": True}, 'RMSprop has no "fused"'),
        ("SGD", {"capturable": True}, 'SGD has no "capturable"'),
        (
            "AdamW",
            {"differentiable": True},
            "differentiable is not supported: no gradient flows through a step",
        ),
        ("AdamW", {"capturable": True}, "capturable: only states on a GPU can be captured"),
        ("AdamW", {"fused": True, "foreach": True}, "foreach and fused are both true"),
        ("SGD", {"nesterov": True, "dampening": 0.1}, "nesterov with dampening 0.1"),
        ("SGD", {"nesterov": True, "momentum": 0}, "nesterov needs momentum"),
        (
            "Adam",
            {"bias_correction": False},
            "bias_correction false is not supported: torch's Adam always corrects",
        ),
        (
            "Adam",
            {"fp32_optimizer_states": False},
            "fp32_optimizer_states false is not supported: checkpoints store the moments in fp32",
        ),
        ("AdamW", {"adam_w_mode": False}, 'adam_w_mode false with type "AdamW"'),
        ("AdamW", {"eps": 0}, "eps is 0: it must be a number above 0"),
    ],
)
def test_arguments_that_torch_dies_of_or_that_would_be_dropped_are_refused(
    name: str, params: dict, message: str
):
    (fault,) = read({"optimizer": {"type": name, "params": params}})[1]
    assert message in fault


@pytest.mark.parametrize(
    "params", [{"dampening": 0.1}, {"momentum": 0}, {"momentum": 0, "dampening": 0.1}, {}]
)
def test_sgd_of_the_json_has_nesterovs_momentum_only_where_it_asks_for_it(params: dict) -> None:
    config, faults = read({"optimizer": {"type": "SGD", "params": params}})
    assert faults == [] and config.optimizer.params["nesterov"] is False


@pytest.mark.parametrize(
    "params", [{"foreach": True}, {"fused": True}, {"maximize": True}, {"torch_adam": True}]
)
def test_arguments_that_the_optimizer_in_host_memory_has_not_are_refused(params: dict) -> None:
    raw = {**HOST, "optimizer": {"type": "AdamW", "params": params}}
    (fault,) = read(raw, device="cuda")[1]
    assert "DeepSpeed's CPUAdam" in fault


def test_partitions_that_do_not_divide_the_ranks_are_refused_with_the_arithmetic() -> None:
    raw = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}
    (fault,) = read(raw, world_size=3, batch_size=3)[1]
    assert "zero_hpz_partition_size 2 does not divide 3 ranks: 3 / 2 = 1.50" in fault
    assert read(raw, world_size=4)[1] == [] and read(raw, world_size=1)[1] == []


def test_a_folder_of_wandbs_is_not_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    (fault,) = read({"wandb": {"enabled": True}})[1]
    assert "the module wandb is not installed: pip install wandb" in fault
    (tmp_path / "wandb" / "__init__.py").touch()
    import importlib

    importlib.invalidate_caches()
    assert read({"wandb": {"enabled": True}})[1] == []
