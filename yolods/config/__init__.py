"""What a run is told: flags, hyper-parameters and the DeepSpeed JSON. Needs only the standard library and yaml.

deepspeed/   the DeepSpeed JSON: its keys and blocks, what DeepSpeed would fail of, batch sizes, all of it resolved
hyper/       hyper-parameters; what is not supported, and what is given and has no effect
optimizers/  an entry for each optimizer, those that are refused, and the JSON's block
names/       what the name of a model, a data set or a ready JSON stands for
flags        of `train` and `val`
run          everything that decides a run, as one frozen object (config.json)
build        from what was typed to a `RunConfig`
resume       going on with a run
run_folder   whose a run's folder is
image_size   what an image size has to be
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
