"""Random configurations out of the documented keys, with right values and wrong ones, and a step
with each.

    draw(number)            ->  Drawn: a DeepSpeed JSON, flags and hyper-parameters, ranks
    checked(drawn, folder)  ->  None where the check before a start lets it pass, else what it says
    step(drawn, ...)        ->  None where its ranks took a step, else their last words

The same number draws the same configuration everywhere.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forks import environment, forked
from tests.tiny import make_dataset

Pool = tuple[Any, ...]

WRONG: Pool = (
    None,
    True,
    False,
    "auto",
    "x",
    "",
    0,
    1,
    3,
    -1,
    0.5,
    1e9,
    [],
    [1],
    ["x"],
    {},
    {"x": 1},
    {"enabled": True},
)
"""What any key may be given, rightly or not."""
_FLAG: Pool = (True, False)
_SIZE: Pool = (1, 1000, 50000000, 5e8, "auto")
_COUNT: Pool = (1, 2, 4)


def _each(names: str, pool: Pool) -> dict[str, Pool]:
    return dict.fromkeys(names.split(), pool)


KEYS: dict[str, Pool] = {
    "train_batch_size": (4, 8, 16, "auto"),
    "train_micro_batch_size_per_gpu": (2, 4, "auto"),
    "gradient_accumulation_steps": (1, 2, "auto"),
    "gradient_clipping": (0, 1.0, 10, "auto"),
    "steps_per_print": (1, 10, None),
    "communication_data_type": ("fp32", "bf16", "fp16"),
    "gradient_predivide_factor": (1.0, 2.0),
    "gradient_allreduce_op": ("mean", "sum"),
    "sequence_parallel_size": (1, 2),
    "vocabulary_size": (64,),
    "allgather_size": (1000,),
    "log_level": ("info", "warning"),
    "seq_parallel_communication_data_type": ("fp32",),
    **_each(
        """managed_gradient_accumulation dump_state disable_python_gc disable_allgather prescale_gradients
        zero_allow_untested_optimizer zero_force_ds_cpu_optimizer wall_clock_breakdown memory_breakdown
        use_data_before_expert_parallelism dataloader_drop_last""",  # noqa: E501
        _FLAG,
    ),
    **_each(
        """zero_optimization.contiguous_gradients zero_optimization.reduce_scatter zero_optimization.overlap_comm
        zero_optimization.use_multi_rank_bucket_allreduce zero_optimization.allgather_partitions
        zero_optimization.load_from_fp32_weights zero_optimization.elastic_checkpoint zero_optimization.cpu_offload
        zero_optimization.cpu_offload_param zero_optimization.stage3_gather_16bit_weights_on_model_save
        zero_optimization.use_all_reduce_for_fetch_params zero_optimization.stage3_allgather_sequential
        zero_optimization.ignore_unused_parameters zero_optimization.legacy_stage1
        zero_optimization.round_robin_gradients zero_optimization.parameter_alignment
        zero_optimization.zero_quantized_weights zero_optimization.zero_quantized_gradients
        zero_optimization.zero_quantized_nontrainable_weights zero_optimization.memory_efficient_linear
        zero_optimization.override_module_apply zero_optimization.log_trace_cache_warnings
        zero_optimization.enable_sanity_checks zero_optimization.compute_grad_norm""",  # noqa: E501
        _FLAG,
    ),
    **_each(
        """zero_optimization.reduce_bucket_size zero_optimization.allgather_bucket_size zero_optimization.sub_group_size
        zero_optimization.prefetch_bucket_size zero_optimization.stage3_prefetch_bucket_size
        zero_optimization.stage3_param_persistence_threshold zero_optimization.stage3_model_persistence_threshold
        zero_optimization.stage3_max_live_parameters zero_optimization.stage3_max_reuse_distance""",  # noqa: E501
        _SIZE,
    ),
    "zero_optimization.stage3_module_granularity_threshold": (0, 1000),
    "zero_optimization.zero_hpz_partition_size": _COUNT,
    "zero_optimization.leaf_module": ({"classes": ["C3"]}, {"names": ["model.2"]}),
    "zero_optimization.offload_optimizer": (
        *(
            {"device": "cpu"},
            {"device": "none"},
            {"device": "cpu", "pin_memory": False, "pipeline_read": True},
        ),
        *(
            {"device": "nvme", "nvme_path": "/x"},
            {"device": "cpu", "ratio": 0.5},
            {"device": "cpu", "fast_init": True},
        ),
    ),
    "zero_optimization.offload_param": (
        {"device": "cpu"},
        {"device": "none"},
        {"device": "cpu", "max_in_cpu": 10},
    ),
    "bf16.enabled": _FLAG,
    "bf16.immediate_grad_update": _FLAG,
    "bf16.check_grad_overflow": _FLAG,
    "bf16.bf16_master_weights_and_grads": _FLAG,
    "fp16": ({"enabled": False}, {"enabled": True}, {"enabled": "auto", "loss_scale": 0}),
    "torch_autocast": (
        *(
            {"enabled": True, "dtype": "bfloat16"},
            {"enabled": True, "dtype": "torch.bfloat16"},
            {"enabled": True},
        ),
        {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": ["torch.nn.Conv2d"]},
    ),
    "data_types.grad_accum_dtype": ("fp32", "bf16", "fp16"),
    "data_types.param_dtype": ("fp32", "bf16"),
    "data_types.buffer_dtype": ("fp32", "bf16"),
    "data_types.keep_in_fp32_modules": (["bn"], "auto"),
    "comms_logger": (
        {"enabled": True},
        {"enabled": False},
        {"enabled": True, "verbose": True, "prof_ops": ["all"]},
    ),
    "tensorboard": ({"enabled": True}, {"enabled": True, "job_name": "mine"}),
    "csv_monitor": (
        {"enabled": True},
        {"enabled": True, "output_path": "elsewhere", "job_name": "mine"},
    ),
    "wandb": ({"enabled": True}, {"enabled": False, "project": "mine"}),
    "comet": ({"enabled": True}, {"enabled": False}),
    "flops_profiler": (
        {"enabled": True, "profile_step": 1},
        {"enabled": True, "detailed": False, "top_modules": 3},
    ),
    "activation_checkpointing": ({"number_checkpoints": 3}, {"partition_activations": True}, {}),
    "checkpoint": (
        {"tag_validation": "Warn"},
        {"load_universal": True},
        {"writer": {"type": "fast"}},
    ),
    "aio": ({"block_size": 1048576}, {"use_gds": True}),
    "timers": (
        {"throughput": {"enabled": True, "synchronized": False}},
        {"throughput": {"enabled": False}},
    ),
    "compile": ({"deepcompile": True}, {"deepcompile": False}, {"debug_log": True}),
    "hybrid_engine": ({"enabled": False}, {"enabled": True}),
    "data_efficiency": ({"enabled": False},),
    "scheduler": ({"type": "WarmupLR", "params": {"warmup_num_steps": 10}}, {}),
    "yolods.clipping.policy": ("global_norm", "adaptive", "percentile", "zscore", "value", "none"),
    "yolods.overflow.handling": ("own", "stock"),
    "yolods.overflow.attribution": ("off", "armed", "always"),
    "yolods.checkpoint": ({"keep": 1}, {"asynchronous": False}, {"every_steps": 1}),
    "pipeline.stages": (1, 2),
    "pipeline.partition": ("balanced", "uniform", [13]),
    "pipeline.activation_checkpoint_interval": (0, 4),
}
"""Keys of the JSON, dotted, and right values of each; not every combination of them is right."""
OPTIMIZERS = (
    *(
        "SGD",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "sgd",
        "Lamb",
        "OneBitAdam",
        "Muon",
        "Lion",
        "Adan",
    ),
    5,
)
PARAMS: dict[str, Pool] = {
    **_each(
        """amsgrad capturable centered differentiable foreach fused maximize nesterov decoupled_weight_decay torch_adam
        adam_w_mode bias_correction fp32_optimizer_states""",  # noqa: E501
        _FLAG,
    ),
    "lr": (0.001, 0.01, "auto"),
    "weight_decay": (0, 0.0005, "auto"),
    "momentum": (0, 0.9, "auto"),
    "dampening": (0, 0.1),
    "betas": ([0.9, 0.999], "auto"),
    "eps": (1e-8, 1e-3),
    "alpha": (0.9,),
    "momentum_decay": (0.004,),
    "max_grad_norm": (1.0,),
}
FLAGS: dict[str, Pool] = {
    "--optimizer": ("auto", "SGD", "AdamW", "RMSprop", "adam", "Muon"),
    "--patience": ("0", "5", "-1"),
    "--save-period": ("1", "-1", "x"),
    "--seed": ("0", "7", "-3"),
    "--close-mosaic": ("0", "10"),
    "--multi-scale": ("0.5", "0", "2"),
    "--freeze": ("1", "0", "3", "x"),
    "--sync-bn": (None,),
    "--cos-lr": (None,),
    "--single-cls": (None,),
    "--cache": ("ram", "disk"),
    "--imgsz": ("64", "32", "96", "50"),
}
"""Flags, and words after them."""
HYPER: dict[str, Pool] = {
    **_each("lr0 lrf", ("0.01", "0.5", "1e-3", "0", "x")),
    **_each("momentum warmup_momentum", ("0.9", "0", "1")),
    **_each(
        "weight_decay warmup_bias_lr mosaic mixup flipud fliplr hsv_h translate",
        ("0", "0.1", "1", "2"),
    ),
    **_each("box cls dfl", ("0", "1.5", "-1")),
    **_each("warmup_epochs degrees shear", ("0", "3", "-1", "[1]")),
    **_each("val plots deterministic channels_last cos_lr", ("true", "false", "maybe")),
    **_each("nbs", ("4", "64", "0")),
    **_each("scale", ("0.5", "[0.5, 1.5]", "[1]")),
    **_each("ema_decay ema_tau", ("0.5", "0.99", "1", "-1")),
    **_each("lr momentom amp anchors", ("1",)),
}
"""Hyper-parameters for --set, and what may stand behind the sign."""


@dataclass(frozen=True)
class Drawn:
    """A configuration."""

    raw: dict[str, Any]
    """The DeepSpeed JSON."""
    words: tuple[str, ...]
    """Flags and hyper-parameters."""
    ranks: int
    """1 or 2."""


def draw(number: int) -> Drawn:
    """The configuration of a number: about half of them are right."""
    luck = random.Random(number)
    share = luck.choice((0.0, 0.0, 0.0, 0.05, 0.3))  # of wrong values
    raw: dict[str, Any] = {"zero_optimization": {"stage": luck.choice((0, 1, 2, 3, 3))}}
    for path in luck.sample(list(KEYS), luck.choice((1, 1, 2, 2, 3, 5, 8))):
        _put(
            raw,
            _misspelt(path, luck) if luck.random() < share / 2 else path,
            _value(KEYS[path], luck, share),
        )
    if luck.random() < 0.4:
        names = luck.sample(list(PARAMS), luck.choice((0, 1, 1, 2, 3)))
        params = {name: _value(PARAMS[name], luck, share) for name in names}
        raw["optimizer"] = {
            "type": luck.choice(OPTIMIZERS[: None if share else 8]),
            "params": params,
        }
    words: list[str] = []
    for flag in luck.sample(list(FLAGS), luck.choice((0, 0, 0, 1, 2))):
        words += [flag, *([word] if (word := luck.choice(FLAGS[flag])) is not None else [])]
    for key in luck.sample(list(HYPER), luck.choice((0, 0, 1, 2))):
        words += ["--set", f"{key}={luck.choice(HYPER[key])}"]
    piped = isinstance(raw.get("pipeline"), dict) and raw["pipeline"].get("stages") == 2
    return Drawn(raw, tuple(words), 2 if piped or luck.random() < 0.1 else 1)


def _value(pool: Pool, luck: random.Random, share: float) -> Any:
    return luck.choice(WRONG if luck.random() < share else pool)


def _misspelt(path: str, luck: random.Random) -> str:
    place = luck.randrange(len(path))
    return path[:place] + path[place + 1 :]


def _put(raw: dict[str, Any], path: str, value: Any) -> None:
    *blocks, key = path.split(".")
    for block in blocks:
        raw = raw.setdefault(block, {})
        if not isinstance(raw, dict):
            return
    raw[key] = value


def command(drawn: Drawn, folder: Path) -> list[str]:
    """The words after `yolods` for a run of one epoch in `folder`, which gets its JSON and its data
    set."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data" / "tiny.yaml").is_file():
        shutil.rmtree(folder / "data", ignore_errors=True)
        make_dataset(folder / "data", train=8, val=2)
    (folder / "ds.json").write_text(json.dumps(drawn.raw), encoding="utf-8")
    words = [
        "train",
        "--data",
        str(folder / "data" / "tiny.yaml"),
        "--model",
        "yolov5[0.33,0.1]",
        "--epochs",
        "1",
    ]
    words += ["--imgsz", "64"] if "--imgsz" not in drawn.words else []
    words += ["--workers", "0", "--noplots", "--deepspeed_config", str(folder / "ds.json")]
    return [*words, "--project", str(folder / "runs"), "--exist-ok", *drawn.words]


def checked(drawn: Drawn, folder: Path) -> str | None:
    """What the check before a start says of it on CPU ranks; None: it would start.

    Raises:
        Exception: whatever the check did not foresee.
    """
    from yolods.commands.parsers import train_parser
    from yolods.errors import UserError
    from yolods.training.checks.preflight import check_train

    try:
        check_train(train_parser().read(command(drawn, folder)[1:]), drawn.ranks, "cpu")
    except UserError as error:
        return str(error)
    return None


def step(drawn: Drawn, folder: Path, *, timeout: float = 120.0) -> str | None:
    """Start it for its one epoch on forked ranks; None where it ended well, else the last that was
    on its screen."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    call = {"words": command(drawn, folder), "size": drawn.ranks}
    code = forked(
        "tests.configs:run_ranks", call, screen=folder / "screen", timeout=timeout, env=_quiet()
    )
    if code == 0:
        return None
    return (
        f"status {code}: "
        + (folder / "screen").read_text(encoding="utf-8", errors="replace")[-3000:]
    )


def _quiet() -> dict[str, str]:
    return {**environment(), "OMP_NUM_THREADS": "1"}


def run_ranks(words: list[str], size: int) -> int:
    """In a process that has everything imported: fork the ranks of a world; the status of the first
    that failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alive = {_rank(words, rank, size, port) for rank in range(size)}
    while alive:
        pid, status = os.waitpid(-1, 0)
        alive.discard(pid)
        if status:
            return (
                os.waitstatus_to_exitcode(status) % 256
            )  # the session, and with it the other ranks, is killed
    return 0


def _rank(words: list[str], rank: int, size: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {
            **{
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
            },
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        from yolods.cli import main

        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
