"""The DeepSpeed JSON: batch arithmetic, wrong keys, wrong combinations, and what goes to
`deepspeed.initialize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolods.config.deepspeed.batch import plan_batches
from yolods.config.deepspeed.config import DEFAULT_JSON, DeepSpeedConfig, read_deepspeed, resolve
from yolods.config.deepspeed.keys import (
    AUTOCAST,
    BF16,
    FP16,
    OFFLOAD_OPTIMIZER,
    OFFLOAD_PARAM,
    REMOVED,
    REMOVED_ZERO,
    ZERO,
)
from yolods.config.deepspeed.yolods_block import CheckpointPolicy, YolodsConfig
from yolods.config.hyper.hyperparameters import Hyper, read_hyper
from yolods.config.optimizers.json_block import merge_optimizer
from yolods.errors import Faults

ROOT = Path(__file__).parents[2]
READY = sorted((ROOT / "ds_configs").glob("*.json"))


def given(raw: dict[str, Any], **context: Any) -> tuple[DeepSpeedConfig, list[str]]:
    """Resolve a JSON on two CPU ranks and return it with its faults."""
    faults = Faults()
    settings = {
        "path": Path("ds.json"),
        "batch_size": None,
        "world_size": 2,
        "device": "cpu",
        **context,
    }
    return resolve(raw, faults=faults, **settings), list(faults)


def only_fault(raw: dict[str, Any], **context: Any) -> str:
    faults = given(raw, **context)[1]
    assert len(faults) == 1, faults
    assert "\n" not in faults[0]
    return faults[0]


# Batch arithmetic: (train, micro, accumulation, --batch-size, ranks, nbs) -> (micro, accumulation,
# automatic, train).
A = "auto"
PLANS = [
    ((A, A, A, None, 1, 64), (16, 4, True, 64)),
    ((A, A, A, None, 2, 64), (8, 4, True, 64)),
    ((None, None, None, None, 2, 64), (8, 4, True, 64)),
    ((A, A, A, 24, 2, 64), (12, 3, True, 72)),
    ((A, A, A, 128, 4, 64), (32, 1, True, 128)),
    ((A, A, A, 4, 2, 64), (2, 16, True, 64)),
    ((A, 4, A, None, 2, 64), (4, 8, True, 64)),
    ((A, 4, A, 8, 2, 64), (4, 8, True, 64)),
    ((A, 4, 3, None, 2, 64), (4, 3, False, 24)),
    ((A, A, 2, 16, 2, 64), (8, 2, False, 32)),
    ((48, A, 3, None, 2, 64), (8, 3, False, 48)),
    ((48, 8, A, None, 2, 64), (8, 3, False, 48)),
    ((48, None, None, 16, 2, 64), (8, 3, False, 48)),
    ((48, None, None, None, 2, 64), (24, 1, False, 48)),
    ((48, 8, 3, 16, 2, 64), (8, 3, False, 48)),
    ((A, A, A, 16, 2, 1), (8, 1, True, 16)),
]


@pytest.mark.parametrize(("asked", "expected"), PLANS)
def test_batch_sizes(asked, expected):
    train, micro, steps, batch, ranks, nbs = asked
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    block = {
        key: value
        for key, value in zip(keys, (train, micro, steps), strict=True)
        if value is not None
    }
    faults = Faults()
    plan = plan_batches(
        block,
        batch_size=batch,
        said_by="--batch-size",
        dp_size=ranks,
        nbs=nbs,
        where="ds.json",
        faults=faults,
    )
    assert list(faults) == []
    assert (plan.micro, plan.accumulation, plan.accumulation_auto, plan.train_batch) == expected
    assert plan.batch == plan.micro * ranks


@pytest.mark.parametrize(
    ("raw", "batch", "ranks", "message"),
    [
        (
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": 4,
                "gradient_accumulation_steps": 4,
            },
            None,
            2,
            "ds.json: train_batch_size 64 != train_micro_batch_size_per_gpu 4 x "
            'gradient_accumulation_steps 4 x 2 ranks = 32; set one of them to "auto"',
        ),
        (
            {"train_micro_batch_size_per_gpu": 4},
            16,
            2,
            "ds.json: train_micro_batch_size_per_gpu 4 x 2 ranks = 8, but --batch-size is 16; use "
            '--batch-size 8, omit it, or set train_micro_batch_size_per_gpu to "auto"',
        ),
        (
            {},
            16,
            3,
            "--batch-size 16 cannot be divided evenly among 3 ranks: 16 / 3 = 5.33; use 15 or 18",
        ),
        (
            {},
            None,
            3,
            "the default --batch-size 16 cannot be divided evenly among 3 ranks: 16 / 3 = 5.33; "
            "use 15 or 18",
        ),
        ({}, 1, 4, "--batch-size 1 cannot be divided evenly among 4 ranks: 1 / 4 = 0.25; use 4"),
        (
            {"train_batch_size": 50, "gradient_accumulation_steps": 4},
            None,
            2,
            "ds.json: train_batch_size 50 / (gradient_accumulation_steps 4 x 2 ranks) = 6.25 is "
            "not an integer; use 48 or 56",
        ),
        (
            {"train_batch_size": 64, "gradient_accumulation_steps": 2},
            16,
            2,
            "ds.json: train_batch_size 64 / gradient_accumulation_steps 2 = 32 images per forward "
            'pass, but --batch-size is 16; set one of them to "auto"',
        ),
        (
            {"train_batch_size": 40},
            16,
            2,
            "ds.json: train_batch_size 40 != train_micro_batch_size_per_gpu 8 x "
            'gradient_accumulation_steps 2 x 2 ranks = 32; set one of them to "auto"',
        ),
    ],
)
def test_batch_sizes_that_do_not_multiply_out(raw, batch, ranks, message):
    assert only_fault(raw, batch_size=batch, world_size=ranks) == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"zero_optimisation": {}},
            "unknown key \"zero_optimisation\" (did you mean 'zero_optimization'?)",
        ),
        (
            {"zero_optimization": {"stag": 1}},
            '"zero_optimization": unknown key "stag" (did you mean \'stage\'?)',
        ),
        (
            {"zero_optimization": {"stage": 4}},
            '"zero_optimization".stage is 4: it must be a whole number in [0, 3]',
        ),
        ({"zero_optimization": True}, 'is true: it must be an object {...}; write {"stage": 1}'),
        (
            {"zero_optimization": {"stage": 3, "mics_shard_size": 2}},
            "mics_shard_size: removed in DeepSpeed 0.19",
        ),
        ({"bf16": {"enabled": "yes"}}, "\"bf16\".enabled is 'yes': it must be true or false"),
        ({"bf16": True}, '"bf16" is true: it must be an object {...}'),
        ({"gradient_clipping": -1}, '"gradient_clipping" is -1: it must be a number of at least 0'),
        (
            {"train_batch_size": 0},
            '"train_batch_size" is 0: it must be a whole number of at least 1',
        ),
        ({"optimizer": "auto"}, "\"optimizer\" is 'auto': it must be an object {...}"),
        ({"elasticity": {}}, '"elasticity": removed in DeepSpeed 0.19'),
        ({"amp": {"enabled": True}}, '"amp": removed in DeepSpeed 0.19; remove it, and use bf16'),
        (
            {"scheduler": {"type": "WarmupLR"}},
            '"scheduler" is not supported: the schedule is ultralytics\': lr0, lrf',
        ),
        (
            {"gradient_allreduce_op": "sum"},
            '"gradient_allreduce_op" is not supported: gradients are averaged',
        ),
        (
            {"pipeline": {"stages": 2}, "zero_optimization": {"stage": 2}},
            '"pipeline" with ZeRO stage 2: a stage reduces its gradients once per step',
        ),
        (
            {"zero_optimization": {"stage": 1, "parameter_alignment": True}},
            "parameter_alignment is not supported: checkpoints cannot represent its padding",
        ),
        (
            {"pipeline": {"stages": 3}},
            '"pipeline".stages 3 does not divide 2 ranks: 2 / 3 = 0.67; 2 ranks support 1, 2',
        ),
        (
            {"pipeline": {"stages": 2, "partition": [3, 9]}},
            '"pipeline".partition has 2 cuts and therefore 3 stages',
        ),
        ({"pipeline": {"stage": 2}}, "\"pipeline\": unknown key 'stage' (did you mean 'stages'?)"),
        (
            {"yolods": {"checkpoint": {"keep": 0}}},
            '"yolods".checkpoint.keep is 0: it must be a whole number of at ',
        ),
        (
            {"yolods": {"checkpoint": {"keep_best": 1}}},
            '"yolods".checkpoint.keep_best is 1: it must be true or false',
        ),
        (
            {"yolods": {"checkpoin": {}}},
            "\"yolods\": unknown key 'checkpoin' (did you mean 'checkpoint'?)",
        ),
        (
            {"yolods": {"checkpoint": 3}},
            '"yolods".checkpoint is 3: it must be an object of settings',
        ),
    ],
)
def test_wrong_keys_and_types(raw, message):
    assert message in only_fault(raw)


ZERO1 = {"zero_optimization": {"stage": 1}}
FP16_ON = {"fp16": {"enabled": True}}
BF16_ON = {"bf16": {"enabled": True}}


def autocast(dtype: str) -> dict[str, Any]:
    return {"torch_autocast": {"enabled": True, "dtype": dtype}}


@pytest.mark.parametrize(
    ("raw", "device", "message"),
    [
        (
            FP16_ON,
            "cuda",
            '"fp16" with ZeRO stage 0 divides gradients by a loss scale that was never applied',
        ),
        (FP16_ON | ZERO1, "cpu", '"fp16": the CPU backend has no fp16; use bf16 or fp32'),
        (autocast("float16"), "cpu", '"torch_autocast".dtype float16: the CPU backend has no fp16'),
        (
            autocast("float16") | ZERO1 | {"yolods": {"overflow": {"handling": "stock"}}},
            "cuda",
            '"torch_autocast" in float16 with "overflow": {"handling": "stock"}: DeepSpeed clips '
            "gradients",
        ),
        (
            {"yolods": {"overflow": {"handling": "stock"}, "clipping": {"policy": "zscore"}}},
            "cpu",
            '"clipping": {"policy": "zscore"} with "overflow": {"handling": "stock"}: DeepSpeed '
            "supports only clipping",
        ),
        (
            {"gradient_clipping": 1.0, "yolods": {"clipping": {"policy": "none"}}},
            "cpu",
            '"gradient_clipping" 1 with "clipping": {"policy": "none"} has no effect: this policy',
        ),
        (
            {
                "fp16": {"enabled": True, "min_loss_scale": 1024},
                "yolods": {"overflow": {"max_loss_scale": 16}},
            }
            | ZERO1,
            "cuda",
            '"overflow".max_loss_scale 16 is below "fp16".min_loss_scale 1024',
        ),
        (
            autocast("float32"),
            "cuda",
            "\"torch_autocast\".dtype is 'float32': it must be bfloat16 or float16",
        ),
        ({"torch_autocast": {"enabled": True}}, "cuda", '"torch_autocast".dtype is missing'),
        (FP16_ON | BF16_ON | ZERO1, "cuda", '"fp16" and "bf16" are enabled together; keep one'),
        (
            BF16_ON | autocast("bfloat16"),
            "cuda",
            '"bf16" and "torch_autocast" are enabled together; keep one',
        ),
        ({"bf16": {}, "bfloat16": {}}, "cuda", '"bf16" and "bfloat16" are the same block'),
        (
            {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
            "cuda",
            '"bf16".bf16_master_weights_and_grads is not supported: the EMA needs fp32 master '
            "weights",
        ),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "cuda",
            '"offload_optimizer" needs ZeRO stage 1, 2 or 3, but the stage is 0',
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "cuda",
            '"offload_param" needs ZeRO stage 3, but the stage is 2',
        ),
        (
            {"zero_optimization": {"stage": 0, "cpu_offload": True}},
            "cuda",
            '"offload_optimizer" needs ZeRO stage 1',
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "cuda",
            "offload_optimizer.device nvme is not supported",
        ),
        (
            {
                "zero_optimization": {
                    "stage": 2,
                    "offload_optimizer": {"device": "cpu", "ratio": 0.5},
                }
            },
            "cuda",
            '"offload_optimizer".ratio 0.5 needs ZeRO stage 3',
        ),
        (
            {"zero_optimization": {"stage": 2, "zenflow": {}}},
            "cuda",
            '"zero_optimization".zenflow is not supported',
        ),
    ],
)
def test_refused_combinations(raw, device, message):
    assert message in only_fault(raw, device=device)


@pytest.mark.parametrize(
    ("raw", "device"),
    [
        (FP16_ON | ZERO1, "cuda"),
        (BF16_ON, "cpu"),
        (autocast("bfloat16") | ZERO1, "cpu"),
        (autocast("float16"), "cuda"),
        (autocast("float16") | ZERO1, "cuda"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": False}}, "cpu"),
        ({"fp16": {"enabled": False}} | BF16_ON, "cpu"),
    ],
)
def test_neighbours_of_refused_combinations_are_taken(raw, device):
    assert given(raw, device=device)[1] == []


def test_all_faults_at_once():
    raw = {
        "fp16": {"enabled": True},
        "pipelin": {},
        "train_batch_size": 7,
        "yolods": {"x": 1},
        "scheduler": {"a": 1},
    }
    assert len(given(raw)[1]) == 6


def test_what_goes_to_initialize():
    config, faults = given(
        {"yolods": {"checkpoint": {"keep": 5}}, "zero_optimization": {"reduce_bucket_size": 5e7}}
    )
    assert faults == []
    assert config.for_initialize() == {
        "zero_optimization": {"reduce_bucket_size": 50000000},
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 10.0,
        "steps_per_print": 10**12,
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},
    }
    assert config.own == YolodsConfig(checkpoint=CheckpointPolicy(keep=5))
    warm = config.for_initialize(accumulation=1)
    assert (warm["gradient_accumulation_steps"], warm["train_batch_size"]) == (1, 16)


def test_nothing_that_is_handed_out_can_change_the_configuration():
    config, _ = given({"zero_optimization": {"stage": 1}})
    config.for_initialize()["zero_optimization"]["stage"] = 3
    config.raw["zero_optimization"]["stage"] = 3
    assert config.for_initialize()["zero_optimization"]["stage"] == 1
    assert config.raw == {"zero_optimization": {"stage": 1}}
    assert DEFAULT_JSON["zero_optimization"]["stage"] == 1


def test_other_blocks_pass_through_untouched():
    blocks = {
        "tensorboard": {"enabled": True, "output_path": "x"},
        "csv_monitor": {"enabled": False},
        "flops_profiler": {"enabled": True, "profile_step": 5},
        "comms_logger": {"enabled": True},
        "steps_per_print": 10,
        "wall_clock_breakdown": True,
        "gradient_clipping": 0.5,
    }
    config, faults = given(blocks)
    assert faults == []
    assert {key: config.for_initialize()[key] for key in blocks} == blocks


def test_offload_does_not_insist_on_a_compiled_optimizer():
    offloaded = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    config, _ = given(offloaded)
    assert config.offload_optimizer and not config.offload_param
    assert config.for_initialize()["zero_force_ds_cpu_optimizer"] is False
    config, _ = given(offloaded | {"zero_force_ds_cpu_optimizer": True})
    assert config.for_initialize()["zero_force_ds_cpu_optimizer"] is True
    assert "zero_force_ds_cpu_optimizer" not in given({})[0].for_initialize()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "a": 1,\n}\n', "; trailing comma before the closing bracket"),
        ('{"a": [1, 2, ]}', "; trailing comma before the closing bracket"),
        ('{"fp16": {}', "line 1 column 12: expecting ',' delimiter: `{\"fp16\": {}`"),
        ("# comment\n{}", "line 1 column 1: expecting value: `# comment`; JSON has no comments"),
        ("{'a': 1}", "JSON strings need \", not '"),
        ('{"fp16": {}, "fp16": {}}', 'duplicate key "fp16" in one block; keep one'),
        (
            '{"zero_optimization": {"stage": 1, "stage": 2}}',
            'duplicate key "stage" in one block; keep one',
        ),
        ('{"gradient_clipping": NaN}', "NaN is not JSON; use a finite number"),
        ("[1]", "it must contain one object {...}"),
        ("", "line 1 column 1: expecting value: ``"),
    ],
)
def test_files_that_are_not_json(tmp_path, text, message):
    file = tmp_path / "ds.json"
    file.write_text(text, encoding="utf-8")
    faults = Faults()
    read_deepspeed(file, batch_size=None, world_size=2, device="cpu", faults=faults)
    assert len(faults) == 1
    line = next(iter(faults))
    assert line.startswith(f"--deepspeed_config {file}: ") and message in line and "\n" not in line


def test_a_missing_file():
    faults = Faults()
    read_deepspeed(Path("none.json"), batch_size=None, world_size=2, device="cpu", faults=faults)
    assert list(faults) == ["--deepspeed_config none.json: no such file"]


def merged(
    raw: dict[str, Any], sets: tuple[str, ...] = (), filed: str = "", tmp_path: Path | None = None
):
    """Hyper-parameters after the JSON's optimizer, the notes, and the faults."""
    faults = Faults()
    file = None
    if tmp_path is not None:
        file = tmp_path / "hyp.yaml"
        file.write_text(filed, encoding="utf-8")
    read = read_hyper(file, sets, faults)
    settings = {"path": Path("ds.json"), "batch_size": None, "world_size": 2, "device": "cpu"}
    config = resolve(raw, faults=faults, hyper=read.hyper, **settings)
    hyper, notes = merge_optimizer(read, config.optimizer, "ds.json", faults)
    return hyper, notes, list(faults), config


def test_the_json_optimizer_wins_over_defaults():
    params = {"lr": 0.002, "betas": [0.8, 0.99], "eps": 1e-8, "weight_decay": 0.05}
    hyper, notes, faults, config = merged({"optimizer": {"type": "adamw", "params": params}})
    assert faults == [] and notes == ()
    assert (hyper.optimizer, hyper.lr0, hyper.momentum, hyper.weight_decay) == (
        "AdamW",
        0.002,
        0.8,
        0.05,
    )
    assert config.for_initialize()["optimizer"] == {"type": "AdamW", "params": params}


def test_auto_in_the_json_optimizer_is_filled_from_hyper_parameters():
    block = {"type": "SGD", "params": {"lr": "auto", "momentum": "auto", "nesterov": True}}
    hyper, _, faults, config = merged({"optimizer": block}, ("lr0=0.02", "momentum=0.8"))
    assert faults == []
    assert dict(config.optimizer.params) == {
        "lr": 0.02,
        "weight_decay": 0.0005,
        "momentum": 0.8,
        "nesterov": True,
    }
    assert (hyper.optimizer, hyper.lr0) == ("SGD", 0.02)


def test_the_json_optimizer_against_the_command_line_is_a_fault():
    _, _, faults, _ = merged(
        {"optimizer": {"type": "SGD", "params": {"lr": 0.5}}}, ("lr0=0.02", "optimizer=SGD")
    )
    assert faults == [
        'ds.json: "optimizer" sets lr0 to 0.5, but --set lr0 is 0.02; remove one of them, or write '
        '"auto" in the JSON'
    ]


def test_the_json_optimizer_against_a_hyp_file_is_noted(tmp_path):
    hyper, notes, faults, _ = merged(
        {"optimizer": {"type": "SGD", "params": {"lr": 0.5}}}, filed="lr0: 0.1\n", tmp_path=tmp_path
    )
    assert faults == [] and hyper.lr0 == 0.5
    assert notes == ("lr0 is 0.5 from ds.json, which overrides 0.1 from hyp.yaml line 1: lr0",)


@pytest.mark.parametrize(
    ("mode", "name"),
    [({}, "AdamW"), ({"adam_w_mode": True}, "AdamW"), ({"adam_w_mode": False}, "Adam")],
)
def test_deepspeeds_adam_is_adamw_unless_told_otherwise(mode, name):
    config, faults = given({"optimizer": {"type": "Adam", "params": mode}})
    assert faults == [] and config.optimizer.name == name


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"type": "Adan"},
            "type 'Adan' is not supported (did you mean 'Adam'?); use one of SGD, Adam",
        ),
        (
            {"type": "OneBitAdam"},
            "type 'OneBitAdam' is not supported, because it compresses gradients itself",
        ),
        ({}, "type '' is not supported; use one of SGD, Adam"),
        (
            {"type": "SGD", "parms": {}},
            '"optimizer": unknown key "parms" (did you mean \'params\'?)',
        ),
        (
            {"type": "SGD", "params": {"betas": [0.9, 0.9]}},
            '"optimizer".params: SGD has no "betas"',
        ),
        (
            {"type": "SGD", "params": {"lr": 7}},
            '"optimizer".params.lr is 7: it must be a number in (0, 1]',
        ),
        (
            {"type": "Adam", "params": {"betas": [0.9]}},
            "it must be a pair [beta1, beta2] of numbers in [0, 1)",
        ),
        ({"type": "Adam", "params": {"max_grad_norm": 1}}, 'use "gradient_clipping": 1'),
        ({"type": "Adam", "params": [1]}, '"optimizer".params is [1]: it must be an object'),
    ],
)
def test_wrong_optimizer_blocks(block, message):
    assert message in only_fault({"optimizer": block})


@pytest.mark.parametrize("file", READY, ids=lambda file: file.stem)
def test_ready_files_are_sound(file: Path):
    """Each says in its name what is in it, and leaves batch sizes to the command line."""
    faults = Faults()
    device = "cuda" if "fp16" in file.stem else "cpu"
    words = file.stem.split("_")
    stages = int(words[0].removeprefix("pipeline")) if words[0].startswith("pipeline") else 1
    config = read_deepspeed(
        file, batch_size=16, world_size=2 * stages, device=device, faults=faults
    )
    assert list(faults) == []
    assert (
        config.world_size == 2 * stages
        and (config.pipeline.stages if config.pipeline else 1) == stages
    )
    assert f"zero{config.zero_stage}" in words or (config.zero_stage == 0 and stages > 1)
    assert (config.autocast if "autocast" in words else config.precision) in words
    assert (config.autocast is not None) == ("autocast" in words)
    assert config.offload_optimizer == ("offload" in words)
    assert config.offload_param == ("offload" in words and config.zero_stage == 3)
    assert (
        config.micro_batch,
        config.accumulation,
        config.accumulation_auto,
        config.train_batch,
    ) == (8, 4, True, 64)
    assert config.gradient_clipping == 10.0 and config.optimizer is None


def test_ready_files_are_there():
    assert len(READY) >= 14


def test_the_default_is_the_ready_zero1_fp32():
    assert json.loads((ROOT / "ds_configs" / "zero1_fp32.json").read_text("utf-8")) == DEFAULT_JSON
    faults = Faults()
    config = read_deepspeed(
        None, batch_size=None, world_size=1, device="cpu", faults=faults, hyper=Hyper()
    )
    assert (
        not faults and config.path is None and config.zero_stage == 1 and config.batches.batch == 16
    )


def test_known_keys_are_those_of_the_installed_deepspeed():
    """A newer DeepSpeed with other keys is to be noticed here and not by a user."""
    from deepspeed.runtime import config, constants
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    def keys(model: Any) -> set[str]:
        return set(model.model_fields) | {
            field.alias for field in model.model_fields.values() if field.alias
        }

    assert set(ZERO) == keys(DeepSpeedZeroConfig)
    assert set(FP16) == keys(DeepSpeedFP16Config)
    assert set(BF16) == keys(DeepSpeedBF16Config)
    assert set(OFFLOAD_OPTIMIZER) == keys(DeepSpeedZeroOffloadOptimizerConfig)
    assert set(OFFLOAD_PARAM) == keys(DeepSpeedZeroOffloadParamConfig)
    assert set(REMOVED) == set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert set(REMOVED_ZERO) == set(config._REMOVED_ZERO_CONFIG_KEYS)
    assert set(AUTOCAST) == {
        constants.TORCH_AUTOCAST_ENABLED,
        constants.TORCH_AUTOCAST_DTYPE,
        constants.TORCH_AUTOCAST_LOWER_PRECISION_SAFE_MODULES,
    }


def test_a_resolved_configuration_is_read_by_the_installed_deepspeed():
    """DeepSpeed's own reader takes what is handed on, and understands it as we do."""
    from deepspeed.runtime.config import DeepSpeedConfig as Stock

    for file in READY:
        faults = Faults()
        ours = read_deepspeed(file, batch_size=16, world_size=1, device="cuda", faults=faults)
        stock = Stock(ours.for_initialize())
        assert stock.zero_optimization_stage == ours.zero_stage
        assert stock.train_batch_size == ours.train_batch == 64
        assert stock.gradient_clipping == ours.gradient_clipping
        assert stock.float16_config.enabled == (ours.precision == "fp16")
        assert stock.bfloat16_config.enabled == (ours.precision == "bf16")
        assert stock.torch_autocast_enabled == (ours.autocast is not None)
