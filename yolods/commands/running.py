"""train, demo, val and the test of links in this process: alone, or as one of the ranks that a
launcher started."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from yolods import __version__, compat
from yolods.commands.parsers import HELP, train_parser, val_parser
from yolods.errors import UserError
from yolods.hosts.devices import count_gpus
from yolods.system import streams
from yolods.system.interrupt import abrupt, noted, patient

if TYPE_CHECKING:
    from yolods.config import RunConfig
    from yolods.config.run_folder import Claim
    from yolods.distributed.world import Ranks

DEMO_FLAGS = (
    *(
        "--data",
        "demo",
        "--model",
        "yolov5n",
        "--imgsz",
        "224",
        "--batch-size",
        "16",
        "--epochs",
        "16",
    ),
    *("--name", "demo", "--set", "nbs=32", "--set", "close_mosaic=4"),
)
"""Flags of `./launch.sh` without a command; chosen to finish in minutes on two cores."""


def train_command(words: list[str]) -> int:
    """Run `yolods train` in this process."""
    from yolods.distributed.rank_env import read_launched_rank

    args, place = (
        train_parser(for_help=bool(HELP & set(words))).read(words),
        read_launched_rank(os.environ),
    )
    # Report errors before the slow imports. Among launched ranks, rank 0 checks everything beyond
    # the flags once the ranks have met.
    if args.faults or not place.launched:
        from yolods.training.checks.preflight import check_train

        check_train(args, place.size, "cuda" if count_gpus(os.environ) else "cpu")
    _say_alone("training")
    from yolods.config.run_folder import Claim
    from yolods.watchdog.failures import noted_in

    folder = Path(args.run_dir) if args.run_dir else None
    with noted_in(folder, args.start_id), Claim() as claim:
        return _train_rank(args, claim)


def demo_command(words: list[str]) -> int:
    """Run `yolods demo` in this process."""
    return train_command([*DEMO_FLAGS, *words])


def _train_rank(args: argparse.Namespace, claim: Claim) -> int:
    from yolods.distributed.world import join_timeout, joined

    prepare_libraries()
    with joined() as ranks:
        # Both after DeepSpeed is initialised: it has chosen its accelerator by then.
        compat.forget_mpi(os.environ)
        compat.take_gpus_by_name(os.environ)
        from yolods.distributed.store import open_store
        from yolods.telemetry import open_log
        from yolods.training.start import start_run
        from yolods.watchdog.watchdog import Watchdog

        with join_timeout():
            config = ranks.main_first(lambda: _claimed(args, claim, ranks))
            if args.start_id and args.start_id != config.start:
                # If two runs chose the same free port, this rank may have joined the other run.
                raise RuntimeError(
                    "these are ranks of another run: both had taken the same port to meet at"
                )
            kv_store = open_store(ranks)
        # In a start on every host, the launchers of the other hosts read the claimed folder from
        # here.
        if args.tell and ranks.local == 0:
            told = [str(config.run_dir.absolute()), config.run, config.start]
            Path(args.tell).write_text(json.dumps(told), encoding="utf-8")
        with (
            noted(),
            open_log(config.run_dir, ranks.rank, ranks.host),
            Watchdog(kv_store, ranks, config.deepspeed.own.watchdog, config.run_dir) as watchdog,
        ):
            run = start_run(config, ranks, kv_store, watchdog)
            with run.telemetry:
                run.fit()
    if ranks.is_main and (reason := streams.lost()):
        print(
            f"warning: cannot write to the screen: {reason}; train.log has every line",
            file=sys.stderr,
        )
    return 0


def _claimed(args: argparse.Namespace, claim: Claim, ranks: Ranks) -> RunConfig:
    """On rank 0: the configuration, in the folder that the launcher or this process claimed."""
    from yolods.config import build_run_config
    from yolods.planner.auto import settled

    build = partial(
        build_run_config, world_size=ranks.size, device=ranks.device.type, environ=os.environ
    )
    config = build(settled(args, build, local=ranks.local_size))
    if args.run_dir:
        return claim.join(config)
    config = claim.take(config)
    say_put_aside(config, claim)
    return config


def val_command(words: list[str]) -> int:
    """Run `yolods val` in this process."""
    args = val_parser(for_help=bool(HELP & set(words))).read(words)
    if args.faults:
        raise UserError("\n".join(args.faults))
    _say_alone("an evaluation")
    from yolods.distributed.world import join_timeout, joined

    prepare_libraries()
    with joined() as ranks:
        from yolods.config.deepspeed.yolods_block import WatchdogConfig
        from yolods.distributed.store import open_store
        from yolods.evaluation.validate import validate
        from yolods.telemetry import open_log
        from yolods.watchdog.watchdog import Watchdog

        with join_timeout():
            kv_store = open_store(ranks)
        watchdog = Watchdog(kv_store, ranks, WatchdogConfig(), None)
        with noted(), open_log(None, ranks.rank, ranks.host), watchdog, patient():
            validate(args, ranks)
    return 0


def link_test_command(words: list[str]) -> int:
    """Measure links as one of the ranks that `plan --links` starts."""
    prepare_libraries()
    from yolods.planner.links.link_rank import run_link_rank

    run_link_rank(words)
    return 0


def _say_alone(what: str) -> None:
    """Print the first line of a process that no launcher started."""
    from yolods.distributed.rank_env import read_launched_rank

    if not read_launched_rank(os.environ).launched:
        from yolods.launch.supervisor import say

        say(
            f"version {__version__}: starting {what} in this process; importing the libraries "
            "takes a while"
        )


def say_put_aside(config: RunConfig, claim: Claim) -> None:
    """Say where the claim has moved the files of an earlier run, if it has."""
    from yolods.launch.supervisor import say

    if claim.put_aside is not None:
        say(
            f"--exist-ok: moved the files of an earlier run in {config.run_dir} to "
            f"{claim.put_aside}"
        )


@abrupt()
def prepare_libraries(gpus: int | None = None) -> None:
    """Import the slow libraries, with their workarounds in place and their messages off the screen.

    Args:
        gpus: GPUs that this process uses; 0: none, whatever the machine has; default: counted.
    """
    from yolods.telemetry.log import quiet_dependencies

    quiet_dependencies(logging.WARNING)
    compat.accept_torch_optimizers()
    # Before DeepSpeed is imported, because it chooses its accelerator only once.
    if not (count_gpus(os.environ) if gpus is None else gpus):
        os.environ["DS_ACCELERATOR"] = "cpu"
        compat.skip_needless_builds()
    compat.leave_lost_ranks_to_the_watchdog(os.environ)
    compat.import_muon_uncompiled()
    compat.print_to_the_log()
    compat.stand_in_for_torchvision()
    quiet_dependencies(logging.WARNING)  # again: the imports have set levels of their own
