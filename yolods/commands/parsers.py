"""The parsers of the commands' flags; that of `plan` is in `planner/flags.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from yolods.errors import nearest
from yolods.parsing.command_line import FlagNames, FlagParser
from yolods.system.invocation import launch_command

HELP = {"-h", "-help", "--help"}
"""Flags that ask for the flags of a command."""
_DOCTOR = (
    "Find problems on this machine or on every host before a run starts. Exit status 2: the run "
    "would fail."
)
_PACKS = (
    "Write a data set into packs: plain tar files with an index. A call that was stopped goes on "
    "where it ended."
)


def train_parser(*, for_help: bool = False) -> FlagParser:
    """The parser of `yolods train`.

    Args:
        for_help: also list the flags of the launcher.
    """
    from yolods.config import add_train_arguments, foreign

    parser = FlagParser(
        prog="yolods train",
        description="Train a YOLOv5 detector.",
        foreign=partial(_foreign, foreign),
    )
    add_train_arguments(parser)
    if for_help:
        _show_launch_arguments(parser)
    return parser


def val_parser(*, for_help: bool = False) -> FlagParser:
    """The parser of `yolods val`.

    Args:
        for_help: also list the flags of the launcher.
    """
    from yolods.config import add_val_arguments, foreign_to_val

    parser = FlagParser(
        prog="yolods val",
        description="Evaluate a saved model.",
        foreign=partial(_foreign, foreign_to_val),
    )
    add_val_arguments(parser)
    if for_help:
        _show_launch_arguments(parser)
    return parser


def export_parser() -> FlagParser:
    """The parser of `yolods export`."""
    parser = FlagParser(prog="yolods export", description="Convert a checkpoint into a plain .pt.")
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, its checkpoints/, or one checkpoint in it"
    )
    parser.add_argument("--to", metavar="PT", required=True, help="the file to write")
    parser.add_argument(
        "--live", action="store_true", help="export the trained weights, not their moving average"
    )
    parser.add_argument(
        "--fp32", action="store_true", help="write fp32; ultralytics' files have fp16"
    )
    return parser


def pack_parser() -> FlagParser:
    """The parser of `yolods pack`."""
    parser = FlagParser(prog="yolods pack", description=_PACKS)
    parser.add_argument("--data", metavar="YAML", help="data yaml, or demo")
    parser.add_argument("--out", metavar="DIR", help="folder of the packs and their data yaml")
    parser.add_argument(
        "--imgsz",
        type=int,
        metavar="PX",
        help="store larger images with this long side (default: files as they are)",
    )
    parser.add_argument(
        "--quality", type=int, metavar="N", help="JPEG quality with --imgsz (default 95)"
    )
    parser.add_argument(
        "--raw",
        dest="uncompressed",
        action="store_true",
        help="with --imgsz: store pixels without compression",
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="of videos: take every N-th frame for training"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "val", "test"),
        help="splits to pack (default: all that the yaml has)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that encode (default: one per core)"
    )
    parser.add_argument(
        "--shard-size", metavar="SIZE", help="maximum length of a tar file (default 1G)"
    )
    parser.add_argument("--overwrite", action="store_true", help="start again, whatever is there")
    parser.add_argument(
        "--verify", metavar="DIR", help="only compare the checksums of the packs in a folder"
    )
    return parser


def doctor_parser() -> FlagParser:
    """The parser of `yolods doctor`."""
    from yolods.launch.args import add_launch_arguments

    parser = FlagParser(prog="yolods doctor", description=_DOCTOR)
    add_launch_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="YAML",
        help="compare this yaml's data between the hosts, and look for leaks between its splits",
    )
    parser.add_argument(
        "--leaks", action="store_true", help="look for leaks in a large data set as well"
    )
    parser.add_argument(
        "--deepspeed_config",
        metavar="JSON",
        type=Path,
        help="check what this configuration compiles",
    )
    return parser


def trace_parser() -> FlagParser:
    """The flags of `yolods trace`, and the launcher's for the help and the completion: a command
    takes those out of its words before."""
    from yolods.training.checks.trace_check import trace_flags

    return _with_launch_flags(trace_flags())


def plan_parser() -> FlagParser:
    """The flags of `yolods plan`, with the launcher's as in `trace_parser`."""
    from yolods.planner.flags import plan_flags

    return _with_launch_flags(plan_flags())


def _with_launch_flags(parser: FlagParser) -> FlagParser:
    """The parser, whose help and completion also have the launcher's flags."""
    from yolods.launch.args import add_launch_arguments

    add_launch_arguments(parser.add_argument_group("the launcher's flags"))
    return parser


def _show_launch_arguments(parser: FlagParser) -> None:
    from yolods.launch.args import add_launch_arguments, add_restart_argument

    group = parser.add_argument_group("the launcher's flags", f"for `{launch_command()}`")
    add_launch_arguments(group)
    add_restart_argument(group)


def _foreign(words_own: Callable[[str], str | None], name: str) -> str | None:
    """The remedy for a flag that a command does not have, which may be a flag of the launcher."""
    from yolods.launch.args import add_launch_arguments, add_restart_argument

    names = FlagNames(add_launch_arguments, add_restart_argument).names
    known = [option for option in names if option.startswith("--")]
    if name in {option.lstrip("-").replace("-", "_") for option in known}:
        return f"a flag of the launcher; use it with `{launch_command()}`"
    if told := words_own(name):
        return told
    close = nearest(f"--{name}", known, cutoff=0.8)
    return (
        f"unknown{close.replace('did you mean', 'did you mean the launcher flag')}"
        if close
        else None
    )
