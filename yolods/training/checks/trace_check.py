"""Checks of `yolods trace` before any process starts: run, checkpoint, and how to start it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolods.checkpoint.verify import names_in
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.config.resume import run_at
from yolods.config.run import CONFIG_FILE, TRACE_STEPS
from yolods.errors import Faults, UserError
from yolods.launch.args import LaunchFlags, recorded_flags
from yolods.launch.command import ranks_of
from yolods.parsing.command_line import FlagParser
from yolods.parsing.rules import check, whole
from yolods.training.checks.preflight import check_files

TRACE_FOLDER = "trace"
"""The only folder of the run into which `yolods trace` writes."""


def trace_flags() -> FlagParser:
    """The parser of `yolods trace`; `launch.args` takes --hostfile and its relatives before."""
    parser = FlagParser(
        prog="yolods trace",
        description="Take a few steps from a run's last checkpoint, and record what every rank did "
        "in them. The run stays as it is; the result is in its folder trace/.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--steps", type=int, default=5, metavar="N", help="steps to record (default 5)"
    )
    parser.add_argument(
        "--epoch",
        type=int,
        metavar="E",
        help="take them from the beginning of this epoch (default: where the checkpoint stands)",
    )
    return parser


def traced_config(
    args: argparse.Namespace, world_size: int, device: str, *, launches: bool = False
) -> RunConfig:
    """The run's configuration for a start that only traces it.

    Args:
        args: of `trace_flags`.
        world_size: number of ranks.
        device: "cpu" or "cuda".
        launches: whether no process is there yet: then data and model are checked as well.

    Raises:
        UserError: no such run, no checkpoint, wrong numbers, or the run cannot be resumed; one line
            per fault.
    """
    run_dir = _run_of(args)
    parser = FlagParser(prog="yolods train", description="")
    add_train_arguments(parser)

    def check_all(config: RunConfig, faults: Faults) -> None:
        config = _to_trace(config, args)
        _check_trace(config, args, faults)
        if launches and not faults:
            check_files(config, faults)

    config = build_run_config(
        parser.read(["--resume", str(run_dir)]),
        world_size=world_size,
        device=device,
        environ=os.environ,
        check_files=check_all,
    )
    return _to_trace(config, args)


def flags_of_run(args: argparse.Namespace, typed: LaunchFlags, gpus: int) -> LaunchFlags:
    """The launcher's flags for the run's own hosts and ranks, unless others were typed.

    Args:
        args: of `trace_flags`.
        typed: the launcher's flags of this command.
        gpus: GPUs of this machine.

    Raises:
        UserError: there is no such run, or its hosts are not known.
    """
    file = _run_of(args) / CONFIG_FILE
    saved = RunConfig.from_json(file.read_bytes(), file.parent)
    if typed != LaunchFlags():
        return typed
    origin = _origin(json.loads(file.read_bytes()))
    flags = recorded_flags(str(origin.get("command", "")), Path(origin.get("folder", ".")))
    hosts = dict.fromkeys(str(device[0]) for device in origin.get("devices", ()))
    if flags.no_ssh or (len(hosts) > 1 and flags.hostfile is None):
        raise UserError(
            f"{file.parent} ran on {', '.join(hosts) or 'several hosts'}: add --hostfile FILE"
            f"{', and start the trace on every host as the run' if flags.no_ssh else ''}"
        )
    flags = replace(flags, master_port=None)
    if flags.hostfile is None and ranks_of(flags, gpus=gpus) != saved.deepspeed.world_size:
        return LaunchFlags(num_gpus=saved.deepspeed.world_size)
    return flags


def _origin(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    origin = saved.get("provenance")
    return origin if isinstance(origin, dict) else {}


def _run_of(args: argparse.Namespace) -> Path:
    """The run's folder; all faults that need no more than the flags."""
    faults = Faults()
    run_dir = run_at(args.run, CONFIG_FILE, f"trace {args.run}", faults)
    check(TRACE_STEPS, args.steps, "--steps", faults)
    faults.raise_if_any()
    assert run_dir is not None
    return run_dir


def _to_trace(config: RunConfig, args: argparse.Namespace) -> RunConfig:
    assert config.resume is not None
    folder = config.resume / TRACE_FOLDER
    return replace(config, run_dir=folder, trace=args.steps, loggers=())


def _check_trace(config: RunConfig, args: argparse.Namespace, faults: Faults) -> None:
    if not names_in(config.checkpoints, config.run):
        faults.add(
            f"{config.checkpoints}: no checkpoint to start from; trace the run while it trains: "
            "train --trace N"
        )
        return
    if args.epoch is not None:
        check(whole(1, config.epochs), args.epoch, "--epoch", faults)
