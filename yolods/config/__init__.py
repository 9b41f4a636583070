"""What a run is told: flags, hyper-parameters and the DeepSpeed JSON. Needs only the standard library and yaml.

Files, each with one job: `values` (a setting's type and range), `hyper`, `refused` (what is not taken, and why),
`unused` (what is given and counts for nothing), `model_name` and `data_name` (what a word stands for), `sizes`,
`schema` (DeepSpeed's keys), `limits` (what DeepSpeed would die of), `unused_keys` (what has no effect), `batch` (batch
arithmetic), `supported_optimizers` (an entry for each), `untrained` (optimizers that are refused), `optimizer` (the
JSON's optimizer block), `own` (the "yolods" block), `pipeline`, `recompute`, `deepspeed` (the JSON as a whole),
`words`, `flags`, `run` (all of it together), `resume`, `read` (from what was typed to all of it), `claim` (the run's
folder), `jsonfile`, `yamlfile`, `ready` (what comes with yolods), `paths`,
`invocation` (how yolods was started).
"""

from yolods.config.batch import BatchPlan
from yolods.config.deepspeed import DeepSpeedConfig, examine, read_deepspeed
from yolods.config.flags import add_train_arguments, add_val_arguments, foreign, foreign_to_val
from yolods.config.hyper import Given, Hyper, HyperRead, read_hyper
from yolods.config.optimizer import JsonOptimizer
from yolods.config.own import CheckpointPolicy, OwnConfig
from yolods.config.paths import cache_dir
from yolods.config.read import build_run_config
from yolods.config.run import CONFIG_FILE, DEMO, RunConfig, next_run_dir

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
    "OwnConfig",
    "RunConfig",
    "add_train_arguments",
    "add_val_arguments",
    "build_run_config",
    "cache_dir",
    "examine",
    "foreign",
    "foreign_to_val",
    "next_run_dir",
    "read_deepspeed",
    "read_hyper",
]
