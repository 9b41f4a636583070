"""Command-line flags of `train` and `val`. A flag that was not given is None."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from yolods.config.hyper.hyperparameters import RULES, Given
from yolods.config.hyper.unsupported import FLAGS, REFUSED, YOLOV5
from yolods.config.loggers import LOGGERS
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
"""Hyper-parameters with a flag of their own -> the flag (yolov5's, if it has one)."""

_REFUSED_FLAGS = {
    "--device": (
        "choose devices with the launcher's --num_gpus, --include or --hostfile, or "
        "CUDA_VISIBLE_DEVICES"
    ),
    "--adam": "use --optimizer Adam",
    "--rect": "every batch has the same shape on every rank; evaluation is rectangular anyway",
    "--quad": "every batch has the same shape on every rank",
    "--nosave": "best.pt, last.pt and the checkpoints are always written",
    "--noautoanchor": "YOLOv5 here is YOLOv5u, which has no anchors",
    "--evolve": "yolods has no hyper-parameter search",
    "--image-weights": "use --set cls_pw=0.5, which weights rare classes higher",
    "--label-smoothing": "YOLOv5u's class targets are soft already, from task alignment",
    "--amp": "set the precision in the DeepSpeed JSON: --deepspeed_config zero1_bf16",
}

_ON: dict[str, Any] = {"action": "store_const", "const": True}
_OFF: dict[str, Any] = {"action": "store_const", "const": False}
"""Keywords of flags without a value, which set True or False; if they are not given, None."""


class _Refuse(argparse.Action):
    """Refuses a flag that yolov5 or ultralytics users may type, and says what to do instead."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        flag = option_string or self.option_strings[0]
        raise RefusedFlag(flag, _REFUSED_FLAGS[flag])


AUTO_BATCH = -1
"""The value of --batch-size that leaves it to the plan: typed auto, or -1 as in ultralytics."""


def images(text: str) -> int:
    """A number of images, or AUTO_BATCH; argparse names this function in its message."""
    return AUTO_BATCH if text == "auto" else int(text)


def _given_flags(
    parser: argparse.ArgumentParser, batch: Callable[[str], int] = int, or_auto: str = ""
) -> None:
    """Add the flags of distributed subcommands. DeepSpeed's launcher adds the hidden --local_rank.

    Args:
        batch: reads --batch-size.
        or_auto: what else --batch-size may be, for the help.
    """
    parser.add_argument(
        "--deepspeed_config",
        "--deepspeed-config",
        metavar="JSON",
        help="DeepSpeed JSON: a file, the name of one in ds_configs/, such as zero2_bf16, or auto: "
        "the best of yolods plan",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", metavar="YAML", help="data yaml, or demo")
    parser.add_argument("--weights", metavar="PT", help="ultralytics .pt")
    _image_flags(parser, batch, or_auto)
    _folder_flags(parser)
    parser.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="one hyper-parameter; repeatable (docs/configuration.md)",
    )


def _image_flags(
    parser: argparse.ArgumentParser, batch: Callable[[str], int], or_auto: str
) -> None:
    """Add the flags for size, number and reading of images."""
    parser.add_argument(
        "--imgsz", "--img", "--img-size", type=int, metavar="PX", help="image size (default 640)"
    )
    parser.add_argument(
        "--batch-size",
        "--batch",
        type=batch,
        metavar="N",
        help=f"images per forward pass over all ranks{or_auto} (default 16)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="loader processes per rank (default 8; 0 on a CPU)"
    )
    parser.add_argument(
        "--check-data", **_ON, help="compare every file of a large data set with its last check"
    )


def _folder_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `read_folder` reads."""
    parser.add_argument("--project", metavar="DIR", help="folder for runs (default runs)")
    parser.add_argument("--name", help="name of the run's folder (default exp)")
    parser.add_argument("--exist-ok", **_ON, help="write into an existing folder")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `train`; `build_run_config` reads the parsed result.

    Parsing a flag of yolov5's train.py that is not supported raises UserError with the remedy.
    """
    _given_flags(parser, images, ", or auto: as many as the plan says that fit")
    parser.add_argument(
        "--model", "--cfg", metavar="NAME", help="yolov5n..x, yolov5n6..x6, yolov5[d,w] or a yaml"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="default 100")
    parser.add_argument("--hyp", metavar="YAML", help="hyper-parameters")
    parser.add_argument(
        "--loggers",
        metavar="NAME,...",
        help=f"also send curves to {', '.join(LOGGERS)}; a resume keeps them, none ends them",
    )
    parser.add_argument(
        "--trace",
        type=int,
        metavar="N",
        help="record N steps of all ranks into trace.json and trace.png",
    )
    # Messages between launcher and ranks: the folder that the launcher claimed, the identity of the
    # start, and the file by which ranks report back.
    parser.add_argument("--run-dir", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--start-id", metavar="ID", help=argparse.SUPPRESS)
    parser.add_argument("--tell", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument(
        "--resume", nargs="?", const=True, metavar="RUN", help="resume a run (default: the newest)"
    )
    _hyper_parameter_flags(parser.add_argument_group("hyper-parameters with a flag of their own"))
    # Registered, so that argparse also consumes their values, which would be unexpected words
    # otherwise.
    for flag in _REFUSED_FLAGS:
        parser.add_argument(
            flag, nargs="*", action=_Refuse, dest=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def _hyper_parameter_flags(hyper: argparse._ActionsContainer) -> None:
    """Add the flags of `HYPER_FLAGS`."""
    hyper.add_argument("--seed", type=int, metavar="N")
    hyper.add_argument(
        "--freeze", nargs="+", metavar="LAYER", help="freeze the first N layers, or the listed ones"
    )
    hyper.add_argument(
        "--cache", nargs="?", const="ram", metavar="ram", help="keep decoded images in memory"
    )
    hyper.add_argument("--cos-lr", **_ON, help="cosine decay of the learning rate")
    hyper.add_argument("--optimizer", metavar="NAME", help=", ".join(("auto", *OPTIMIZERS)))
    hyper.add_argument(
        "--patience", type=int, metavar="N", help="stop after N epochs without improvement"
    )
    hyper.add_argument("--save-period", type=int, metavar="N", help="keep a model every N epochs")
    hyper.add_argument("--single-cls", **_ON, help="treat all classes as one")
    hyper.add_argument(
        "--multi-scale",
        nargs="?",
        const=0.5,
        type=float,
        metavar="SHARE",
        help="vary the image size",
    )
    hyper.add_argument("--sync-bn", **_ON, help="synchronise BatchNorm over all ranks")
    hyper.add_argument(
        "--close-mosaic", type=int, metavar="N", help="no mosaic in the last N epochs"
    )
    hyper.add_argument("--noval", dest="val", **_OFF, help="no evaluation after each epoch")
    hyper.add_argument("--noplots", dest="plots", **_OFF, help="no pictures")


def add_val_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `val`. --set sets its hyper-parameters (conf, iou, max_det, ...)."""
    _given_flags(parser)
    parser.add_argument(
        "--save-json", action="store_true", help="write predictions.json in COCO's results format"
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="split to evaluate (default val)"
    )
    parser.add_argument(
        "--device", action=_Refuse, nargs="*", dest=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


EVALUATION = (
    "conf",
    "iou",
    "max_det",
    "agnostic_nms",
    "single_cls",
    "classes",
    "plots",
    "box",
    "cls",
    "dfl",
)
"""Hyper-parameters that an evaluation uses; the last three weight its losses."""

_FOREIGN = {
    "deepspeed": "not needed: every run uses DeepSpeed; configure it with --deepspeed_config JSON",
    "deepspeed_mpi": "use --launcher openmpi of `{launcher}`",
    "conf_thres": "write --set conf=VALUE",
    "iou_thres": "write --set iou=VALUE",
    "task": "yolods trains detectors only; `val --split` selects what to evaluate",
    "half": "set the precision in the DeepSpeed JSON: --deepspeed_config zero1_bf16",
    "img_weights": _REFUSED_FLAGS["--image-weights"],
    "nproc_per_node": "use --num_gpus of `{launcher}` for the ranks per host",
    "nnodes": "use --hostfile of `{launcher}`",
    **dict.fromkeys(
        ("num_nodes", "min_elastic_nodes", "max_elastic_nodes"),
        "use --hostfile and --include of `{launcher}`",
    ),
    "elastic_training": "`{launcher}` restarts a run on the remaining hosts; see --max_restarts",
    **dict.fromkeys(
        ("bind_cores_to_rank", "bind_core_list"),
        "ranks share the cores of their host; OMP_NUM_THREADS overrides this",
    ),
    "enable_each_rank_log": "not needed: the logs of all ranks are in the run's folder",
    **dict.fromkeys(
        ("module", "no_python", "no_local_rank"), "not needed: `{launcher}` starts the ranks itself"
    ),
    "autotuning": (
        "not supported: start from a JSON of ds_configs/, such as --deepspeed_config zero2_bf16"
    ),
    "gpus": "use --num_gpus of `{launcher}` for the ranks per host",
    "lr": "write --set lr0=VALUE",
    "learning_rate": "write --set lr0=VALUE",
    "fp16": "set the precision in the DeepSpeed JSON: --deepspeed_config zero1_fp16",
    "bf16": "set the precision in the DeepSpeed JSON: --deepspeed_config zero1_bf16",
    "zero_stage": "set the ZeRO stage in the DeepSpeed JSON: --deepspeed_config zero2_bf16",
}
"""Other flags that users of ultralytics, yolov5, DeepSpeed and torchrun may type -> what to write
instead. `foreign` fills in `{launcher}`."""


def foreign(name: str) -> str | None:
    """What to write instead of an unknown flag; None if there is no advice.

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
        return f"not supported: {REFUSED[name][1] if name in REFUSED else YOLOV5[name]}"
    close = nearest(name, RULES, cutoff=0.8)
    return (
        f"unknown{close.replace('did you mean', 'did you mean the hyper-parameter')}"
        if close
        else None
    )


_OF_TRAINING = "a flag of train, not of val"
_ANYWHERE = (
    "conf_thres",
    "iou_thres",
    "deepspeed_mpi",
    "nproc_per_node",
    "nnodes",
    "num_nodes",
    "gpus",
    "module",
)
"""Names of `_FOREIGN` whose remedy is valid for `val` as well."""


def foreign_to_val(name: str) -> str | None:
    """As `foreign`, for a flag that `val` does not have; advises only what `val` accepts."""
    if name in ("model", "cfg"):
        return "the model is in the .pt; write --weights PT"
    if name in _ANYWHERE:
        return _FOREIGN[name].format(launcher=launch_command())
    if name == "task":
        return "yolods evaluates detectors only; --split selects the images"
    if name in ("half", "fp16", "bf16", "amp"):
        return "not supported: an evaluation runs in fp32"
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
        return "not supported by val"
    close = nearest(name, EVALUATION, cutoff=0.8)
    return (
        f"unknown{close.replace('did you mean', 'did you mean the hyper-parameter')}"
        if close
        else None
    )


def hyper_flags(args: argparse.Namespace) -> list[Given]:
    """The hyper-parameters among the flags that were given."""
    given = []
    for key, flag in HYPER_FLAGS.items():
        value = getattr(args, key, None)
        if value is not None:
            given.append(Given(key, _freeze(value) if key == "freeze" else value, flag))
    return given


def _freeze(words: Sequence[str]) -> Any:
    """Parse --freeze as yolov5 does: one number means that many first layers, several are the
    layers themselves."""
    layers = [int(word) if word.isdigit() else word for word in words]
    return layers[0] if len(layers) == 1 and isinstance(layers[0], int) else layers
