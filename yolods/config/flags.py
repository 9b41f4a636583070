"""Command-line flags of `train` and `val`. A flag that was not given is None, so that it differs from its default."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from yolods.config.hyper.hyperparameters import RULES, Given
from yolods.config.hyper.unsupported import FLAGS, REFUSED, YOLOV5
from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.errors import nearest
from yolods.parsing.command_line import FlagNames, RefusedFlag
from yolods.system.invocation import launch_command

HYPER_FLAGS: dict[str, str] = {
    "seed": "--seed",
    "freeze": "--freeze",
    "cache": "--cache",
    "cos_lr": "--cos-lr",
    "optimizer": "--optimizer",
    "patience": "--patience",
    "save_period": "--save-period",
    "single_cls": "--single-cls",
    "multi_scale": "--multi-scale",
    "sync_bn": "--sync-bn",
    "close_mosaic": "--close-mosaic",
    "val": "--noval",
    "plots": "--noplots",
}
"""Hyper-parameters that have a flag of their own (yolov5's, where it has one)."""

_REFUSED_FLAGS = {
    "--device": "the launcher picks devices: --num_gpus, --include or --hostfile, or CUDA_VISIBLE_DEVICES",
    "--adam": "use --optimizer Adam",
    "--rect": "every batch has the same shape on every rank; evaluation is rectangular anyway",
    "--quad": "every batch has the same shape on every rank",
    "--nosave": "best.pt, last.pt and the checkpoints are always written",
    "--noautoanchor": "YOLOv5 here is YOLOv5u, which has no anchors",
    "--evolve": "hyper-parameter search is not in this version",
    "--image-weights": "use --set cls_pw=0.5, which weighs rare classes",
    "--label-smoothing": "YOLOv5u's class targets are soft already, from task alignment",
    "--amp": "precision is in the DeepSpeed JSON: --deepspeed_config zero1_bf16",
}


class _Refuse(argparse.Action):
    """A flag that yolov5 or ultralytics users may type, answered with what to do."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        flag = option_string or self.option_strings[0]
        raise RefusedFlag(flag, _REFUSED_FLAGS[flag])


def _given_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every distributed subcommand; the launcher adds --local_rank to what a user typed."""
    parser.add_argument(
        "--deepspeed_config",
        "--deepspeed-config",
        metavar="JSON",
        help="everything distributed: a file, or the name of a ready one, such as zero2_bf16",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", metavar="YAML", help="data yaml, or demo")
    parser.add_argument("--weights", metavar="PT", help="ultralytics .pt")
    parser.add_argument("--imgsz", "--img", "--img-size", type=int, metavar="PX", help="image size (default 640)")
    parser.add_argument("--batch-size", "--batch", type=int, metavar="N", help="images over all ranks (default 16)")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes a rank (default 8; 0 on a CPU)")
    parser.add_argument("--project", metavar="DIR", help="folder of runs (default runs)")
    parser.add_argument("--name", help="the run's folder in it (default exp)")
    parser.add_argument("--exist-ok", action="store_const", const=True, help="write into a folder that exists")
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="a hyper-parameter; repeat it (docs/configuration.md)"
    )


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `train`; `build_run_config` reads what comes out.

    A flag of yolov5's train.py that is not taken raises UserError, with the remedy, while it is parsed.
    """
    _given_flags(parser)
    parser.add_argument("--model", "--cfg", metavar="NAME", help="yolov5n..x, yolov5n6..x6, yolov5[d,w] or a yaml")
    parser.add_argument("--epochs", type=int, metavar="N", help="default 100")
    parser.add_argument("--hyp", metavar="YAML", help="hyper-parameters")
    # What the launcher tells its ranks: the folder that it has claimed, and whose it is; and what they tell it.
    parser.add_argument("--run-dir", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--start-id", metavar="ID", help=argparse.SUPPRESS)
    parser.add_argument("--tell", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--resume", nargs="?", const=True, metavar="RUN", help="go on with a run (default: the newest)")
    hyper = parser.add_argument_group("hyper-parameters with a flag of their own")
    hyper.add_argument("--seed", type=int, metavar="N")
    hyper.add_argument("--freeze", nargs="+", metavar="LAYER", help="N: the first N layers; several: those layers")
    hyper.add_argument("--cache", nargs="?", const="ram", metavar="ram", help="keep decoded images in memory")
    hyper.add_argument("--cos-lr", action="store_const", const=True, help="cosine decay of the learning rate")
    hyper.add_argument("--optimizer", metavar="NAME", help=", ".join(("auto", *OPTIMIZERS)))
    hyper.add_argument("--patience", type=int, metavar="N", help="epochs without improvement")
    hyper.add_argument("--save-period", type=int, metavar="N", help="keep a model every N epochs")
    hyper.add_argument("--single-cls", action="store_const", const=True, help="all classes count as one")
    hyper.add_argument("--multi-scale", nargs="?", const=0.5, type=float, metavar="SHARE", help="vary the image size")
    hyper.add_argument("--sync-bn", action="store_const", const=True, help="BatchNorm over all ranks")
    hyper.add_argument("--close-mosaic", type=int, metavar="N", help="last epochs without mosaic")
    hyper.add_argument("--noval", dest="val", action="store_const", const=False, help="no evaluation after each epoch")
    hyper.add_argument("--noplots", dest="plots", action="store_const", const=False, help="no pictures")
    for flag in _REFUSED_FLAGS:
        parser.add_argument(flag, nargs="*", action=_Refuse, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_val_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `val`. Hyper-parameters of evaluation (conf, iou, max_det, ...) are given by --set."""
    _given_flags(parser)
    parser.add_argument("--save-json", action="store_true", help="write predictions.json in COCO's results format")
    parser.add_argument("--split", choices=("train", "val", "test"), help="split to evaluate (default val)")
    parser.add_argument("--device", action=_Refuse, nargs="*", dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


EVALUATION = ("conf", "iou", "max_det", "agnostic_nms", "single_cls", "classes", "plots", "box", "cls", "dfl")
"""Hyper-parameters that an evaluation goes by; the last three weigh its losses."""

_FOREIGN = {
    "deepspeed": "every run is DeepSpeed's, so the flag is not needed; --deepspeed_config JSON says how",
    "deepspeed_mpi": "choose what starts the ranks by --launcher openmpi, which `{launcher}` takes",
    "conf_thres": "write --set conf=VALUE",
    "iou_thres": "write --set iou=VALUE",
    "task": "only detection is trained here; what is evaluated is said by `val --split`",
    "half": "precision is in the DeepSpeed JSON: --deepspeed_config zero1_bf16",
    "img_weights": _REFUSED_FLAGS["--image-weights"],
    "nproc_per_node": "ranks per host are said by --num_gpus, which `{launcher}` takes",
    "nnodes": "hosts are named by --hostfile, which `{launcher}` takes",
    **dict.fromkeys(
        ("num_nodes", "min_elastic_nodes", "max_elastic_nodes"),
        "hosts are named by --hostfile and chosen by --include, which `{launcher}` takes",
    ),
    "elastic_training": "a run goes on with the hosts that are left: --max_restarts, which `{launcher}` takes",
    **dict.fromkeys(
        ("bind_cores_to_rank", "bind_core_list"), "ranks share the cores of their host; OMP_NUM_THREADS says otherwise"
    ),
    "enable_each_rank_log": "not needed: the logs of all ranks are in the run's folder",
    **dict.fromkeys(("module", "no_python", "no_local_rank"), "not needed: `{launcher}` starts ranks by itself"),
    "autotuning": "not taken: start from a ready JSON, such as --deepspeed_config zero2_bf16",
    "gpus": "ranks per host are said by --num_gpus, which `{launcher}` takes",
    "lr": "write --set lr0=VALUE",
    "learning_rate": "write --set lr0=VALUE",
    "fp16": "precision is in the DeepSpeed JSON: --deepspeed_config zero1_fp16",
    "bf16": "precision is in the DeepSpeed JSON: --deepspeed_config zero1_bf16",
    "zero_stage": "ZeRO's stage is in the DeepSpeed JSON: --deepspeed_config zero2_bf16",
}
"""What else users of ultralytics, yolov5, DeepSpeed and torchrun may type, and what to write here. `foreign` fills in
`{launcher}`."""


def foreign(name: str) -> str | None:
    """What to write in place of a flag that is none here; None where nothing is known of it.

    Args:
        name: with underscores, without dashes.
    """
    if name in _FOREIGN:
        return _FOREIGN[name].format(launcher=launch_command())
    if name in RULES:
        flag = HYPER_FLAGS.get(name)
        return f"a hyper-parameter; write {f'{flag} or ' if flag else ''}--set {name}=VALUE"
    if name in FLAGS:
        return f"write {FLAGS[name]}"
    if name in REFUSED or name in YOLOV5:
        return f"not taken: {REFUSED[name][1] if name in REFUSED else YOLOV5[name]}"
    close = nearest(name, RULES, cutoff=0.8)
    return f"unknown{close.replace('did you mean', 'did you mean the hyper-parameter')}" if close else None


_OF_TRAINING = "of training; val does not take it"
_ANYWHERE = ("conf_thres", "iou_thres", "deepspeed_mpi", "nproc_per_node", "nnodes", "num_nodes", "gpus", "module")
"""Names of `_FOREIGN` whose remedy holds for `val` as well."""


def foreign_to_val(name: str) -> str | None:
    """The same of a flag that `val` does not have: nothing is advised that it would refuse."""
    if name in ("model", "cfg"):
        return "the model is in the .pt; write --weights PT"
    if name in _ANYWHERE:
        return _FOREIGN[name].format(launcher=launch_command())
    if name == "task":
        return "only detection is evaluated here; --split says on what"
    if name in ("half", "fp16", "bf16", "amp"):
        return "not taken: an evaluation computes in fp32"
    if name in EVALUATION:
        return f"a hyper-parameter; write --set {name}=VALUE"
    train, val = FlagNames(add_train_arguments), FlagNames(add_val_arguments)
    flag = FLAGS.get(name, f"--{name}").replace("_", "-")
    if flag in val.names:
        return f"write {flag}"
    known = {option.lstrip("-").replace("-", "_") for option in train.names}
    if name in known or name in FLAGS or name in RULES or name in _FOREIGN:
        return _OF_TRAINING
    if name in REFUSED or name in YOLOV5:
        return "not taken by val"
    close = nearest(name, EVALUATION, cutoff=0.8)
    return f"unknown{close.replace('did you mean', 'did you mean the hyper-parameter')}" if close else None


def hyper_flags(args: argparse.Namespace) -> list[Given]:
    """The hyper-parameters among the flags that were given."""
    given = []
    for key, flag in HYPER_FLAGS.items():
        value = getattr(args, key, None)
        if value is not None:
            given.append(Given(key, _freeze(value) if key == "freeze" else value, flag))
    return given


def _freeze(words: Sequence[str]) -> Any:
    """As in yolov5: one number is how many layers from the first, several are the layers themselves."""
    layers = [int(word) if word.isdigit() else word for word in words]
    return layers[0] if len(layers) == 1 and isinstance(layers[0], int) else layers
