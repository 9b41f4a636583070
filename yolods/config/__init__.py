"""Configuration: flags, hyper-parameters and the DeepSpeed JSON. Needs only the standard library
and yaml.

deepspeed/   the DeepSpeed JSON: its keys and blocks, batch sizes, faults, the resolved run
hyper/       hyper-parameters; messages about those not supported or without effect
optimizers/  one entry per optimizer, the unsupported ones, the JSON's "optimizer" block
names/       resolves the name of a model, a data set or a JSON of ds_configs/
flags        command-line flags of `train` and `val`
loggers      the names of --loggers and the packages they need
run          the whole configuration of a run as one frozen object (config.json)
build        builds a `RunConfig` from the command line
resume       finds the run to resume and checks that it is still the same run
run_folder   claims, locks and clears a run's folder
image_size   checks the image size against model and batch
"""

from yolods.config.build import build_run_config
from yolods.config.deepspeed.batch import BatchPlan
from yolods.config.deepspeed.config import DeepSpeedConfig, precheck_deepspeed, read_deepspeed
from yolods.config.deepspeed.yolods_block import CheckpointPolicy, YolodsConfig
from yolods.config.flags import add_train_arguments, add_val_arguments, foreign, foreign_to_val
from yolods.config.hyper.hyperparameters import Given, Hyper, HyperRead, read_hyper
from yolods.config.optimizers.json_block import JsonOptimizer
from yolods.config.run import CONFIG_FILE, DEMO, RunConfig, next_run_dir
from yolods.system.folders import cache_dir

__all__ = [
    "CONFIG_FILE",
    "DEMO",
    "BatchPlan",
    "CheckpointPolicy",
    "DeepSpeedConfig",
    "Given",
    "Hyper",
    "HyperRead",
    "JsonOptimizer",
    "RunConfig",
    "YolodsConfig",
    "add_train_arguments",
    "add_val_arguments",
    "build_run_config",
    "cache_dir",
    "foreign",
    "foreign_to_val",
    "next_run_dir",
    "precheck_deepspeed",
    "read_deepspeed",
    "read_hyper",
]
