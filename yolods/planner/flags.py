"""The flags of `yolods plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolods.parsing.command_line import FlagParser
from yolods.plan.time.gpus import GPUS

PRECISIONS = ("fp32", "bf16", "fp16")
_WHAT = (
    "Choose how model, optimizer and batch are divided among the ranks: the memory and the time of "
    "every layout are computed before anything runs, and the best ones are shown."
)


def plan_flags() -> FlagParser:
    """The parser of `yolods plan`; `launch.args` takes --hostfile and its relatives before."""
    parser = FlagParser(prog="yolods plan", description=_WHAT)
    _add_run(parser.add_argument_group("the run"))
    _add_machines(parser.add_argument_group("the machines"))
    _add_output(parser.add_argument_group("the result"))
    return parser


def _add_run(group: argparse._ActionsContainer) -> None:
    group.add_argument("--model", metavar="NAME", help="as for train (default yolov5s)")
    group.add_argument("--imgsz", metavar="PX", type=int, default=640, help="default 640")
    group.add_argument(
        "--data", metavar="YAML", help="data yaml, or demo; without it, COCO's classes and boxes"
    )
    group.add_argument(
        "--images-per-step",
        metavar="B",
        type=int,
        help="images per optimizer step over all ranks (default 64, or a multiple of the ranks)",
    )
    group.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        help="data types to choose from (default: those that the device computes fast)",
    )
    group.add_argument("--stages", metavar="P", type=int, help="only this many pipeline stages")
    group.add_argument("--zero", type=int, choices=range(4), help="only this ZeRO stage")
    group.add_argument("--recompute", choices=("on", "off"), help="only with it, or without")
    group.add_argument(
        "--optimizer",
        metavar="NAME",
        default="auto",
        help="decides the states' size (default auto)",
    )


def _add_machines(group: argparse._ActionsContainer) -> None:
    group.add_argument("--ranks", metavar="N", type=int, help="number of ranks, without a hostfile")
    group.add_argument(
        "--hosts", metavar="K", type=int, help="hosts among which --ranks are divided (default 1)"
    )
    group.add_argument("--gpu", metavar="NAME", help=f"published figures: {', '.join(GPUS)}")
    group.add_argument(
        "--gpu-memory", metavar="GIB", type=float, help="memory of a GPU; 90%% of it is used"
    )
    group.add_argument(
        "--host-memory",
        metavar="GIB",
        type=float,
        help="memory of a host: limits offloaded states (default: unlimited), and everything if "
        "ranks are on CPUs (default: this machine's)",
    )
    group.add_argument(
        "--link",
        metavar="GBIT/S",
        type=float,
        nargs="+",
        help="bandwidth between hosts, and within one (default: assumed)",
    )
    group.add_argument(
        "--links",
        action="store_true",
        help="measure the links between the hostfile's hosts, and steps of ranks on CPUs",
    )


def _add_output(group: argparse._ActionsContainer) -> None:
    group.add_argument("--top", metavar="N", type=int, default=6, help="rows to show (default 6)")
    group.add_argument(
        "--out", metavar="JSON", type=Path, help="write the best layout as a DeepSpeed JSON"
    )
    group.add_argument("--exist-ok", action="store_true", help="replace existing files")
    group.add_argument("--json", action="store_true", help="print everything as JSON instead")
    group.add_argument(
        "--plot", metavar="PNG", type=Path, help="draw the memory of the best layouts"
    )
