"""Commands that one process does and answers on the screen: doctor, plan, export, pack and
completion."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from yolods.commands import USER_ERROR
from yolods.commands.parsers import (
    doctor_parser,
    export_parser,
    pack_parser,
    plan_parser,
    trace_parser,
    train_parser,
    val_parser,
)
from yolods.commands.running import prepare_libraries
from yolods.errors import UserError
from yolods.hosts.devices import count_gpus
from yolods.system import streams
from yolods.system.interrupt import abrupt, noted

if TYPE_CHECKING:
    from yolods.data.spec import DataSpec
    from yolods.launch.args import LaunchFlags

OTHER_FORMATS = frozenset(
    ("format", "include", "model", "imgsz", "half", "int8", "dynamic", "simplify", "opset", "nms")
)
"""Words of the exports of ultralytics and yolov5, which write other formats."""
NO_LEAKS = "leaks between the splits are looked for when the packs are complete"


def doctor_command(words: list[str]) -> int:
    """Run `yolods doctor`."""
    from yolods.launch.args import split_words

    return examine(*split_words(words))


def examine(flags: LaunchFlags, words: list[str]) -> int:
    """Print the result of `yolods doctor`. Returns 0 if a run would start."""
    from yolods.config import DEMO, precheck_deepspeed
    from yolods.data.spec import places, read_spec, spare_places
    from yolods.doctor.run import run_doctor
    from yolods.errors import Faults
    from yolods.hosts.probe import pack_fault
    from yolods.launch.command import hosts_of

    args = doctor_parser().take(words)
    hosts = hosts_of(flags, gpus=0 if flags.hostfile else count_gpus(os.environ))
    faults, trees, lists, spare = Faults(), (), (), frozenset()
    builds, fetched, leaks = False, (), []
    if args.deepspeed_config is not None:
        ranks, device = (
            sum(len(host.chosen) for host in hosts),
            "cuda" if count_gpus(os.environ) else "cpu",
        )
        builds = precheck_deepspeed(
            args.deepspeed_config, world_size=ranks, device=device, faults=faults
        )
    if args.data not in (None, DEMO):
        try:
            spec = read_spec(Path(args.data))
            if spec.needs_download:
                fetched = (
                    f"{spec.yaml}: some of its images are missing; a start would download them "
                    "first",
                )
            else:
                (trees, lists), spare = places(spec), spare_places(spec)
                # A pack that is not complete is told by the report of each host that has it.
                whole = not any(map(pack_fault, set(trees) - spare))
                leaks = _leaks(spec, asked=args.leaks) if whole else [NO_LEAKS]
        except UserError as error:
            for line in str(error).splitlines():
                faults.add(line)
    lines, works = run_doctor(
        hosts,
        flags,
        builds=builds,
        trees=trees,
        lists=lists,
        ignored=(".cache",),  # ultralytics' scans beside the labels differ between hosts
        spare=spare,
        faults=faults,
    )
    streams.show("\n".join((*lines[:-1], *fetched, *leaks, *lines[-1:])))
    return 0 if works else USER_ERROR


def _leaks(spec: DataSpec, *, asked: bool) -> list[str]:
    """Warnings of images of this host that are in two splits.

    Raises:
        UserError: the data cannot be trained on.
    """
    from yolods.data.leaks.look import look_for_leaks
    from yolods.system.folders import cache_dir

    found = look_for_leaks(spec, cache_dir(), asked=asked, progress=True)
    return [f"warning: {line}" for line in found]


def plan_command(words: list[str]) -> int:
    """Run `yolods plan`."""
    from yolods.launch.args import split_words

    return show_plan(*split_words(words))


def show_plan(flags: LaunchFlags, words: list[str]) -> int:
    """Print the result of `yolods plan`."""
    from yolods.launch.supervisor import say
    from yolods.telemetry.log import quiet_dependencies

    args = plan_parser().take(words)
    quiet_dependencies(logging.WARNING)
    with abrupt():
        from yolods.planner.command import run_plan
    run_plan(args, flags, count_gpus(os.environ), tell=say, show=streams.show)
    return 0


def export_command(words: list[str]) -> int:
    """Run `yolods export`."""
    names = {word.lstrip("-").partition("=")[0] for word in words}
    if found := sorted(names & OTHER_FORMATS):
        raise UserError(
            f"export {found[0]}: yolods export writes a .pt out of a run's checkpoint; for other "
            "formats, use ultralytics on best.pt: YOLO('best.pt').export(format='onnx')"
        )
    args = export_parser().take(words)
    from yolods.checkpoint.convert import export

    prepare_libraries(gpus=0)
    streams.show(str(export(Path(args.run), Path(args.to), live=args.live, fp32=args.fp32)))
    return 0


def pack_command(words: list[str]) -> int:
    """Run `yolods pack`."""
    args = pack_parser().take(words)
    with abrupt():
        from yolods.telemetry import open_log
        from yolods.telemetry.log import quiet_dependencies

        quiet_dependencies(logging.WARNING)
        from yolods.data.pack.command import run_pack
    with noted(), open_log(None):
        lines = run_pack(args)
    streams.show("\n".join(lines))
    return 0


def completion_command(words: list[str]) -> int:
    """Run `yolods completion`."""
    from yolods.config.loggers import LOGGERS
    from yolods.config.names.recipes import recipes
    from yolods.config.optimizers.supported import OPTIMIZERS
    from yolods.parsing.completion import SHELLS, completion_script

    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"write yolods completion {' or '.join(SHELLS)}")
    plan, train = plan_parser(), train_parser(for_help=True)
    parsers = {"train": train, "val": val_parser(for_help=True), "export": export_parser()}
    parsers |= {"pack": pack_parser(), "demo": train, "plan": plan, "doctor": doctor_parser()}
    parsers["trace"] = trace_parser()
    values = {"--deepspeed_config": [*recipes(), "auto"], "--loggers": LOGGERS}
    values |= {"--optimizer": ["auto", *OPTIMIZERS]}
    others = {"completion": SHELLS, "launch": ()}
    streams.show(completion_script(words[0], parsers, others, values))
    return 0
