"""`yolods trace`: steps of a run from its last checkpoint, recorded on all ranks."""

from __future__ import annotations

import os

from yolods import compat
from yolods.commands.launching import launch_trace
from yolods.commands.parsers import trace_parser
from yolods.commands.running import prepare_libraries
from yolods.system.interrupt import noted


def trace_command(words: list[str]) -> int:
    """Run `yolods trace`: as one of the ranks that a launcher started, else by starting them."""
    from yolods.distributed.rank_env import read_launched_rank

    if not read_launched_rank(os.environ).launched:
        from yolods.launch.args import split_words

        launch_trace(*split_words(words))
    from yolods.distributed.world import join_timeout, joined
    from yolods.training.checks.trace_check import traced_config

    args = trace_parser().take(words)
    prepare_libraries()
    with joined() as ranks:
        compat.forget_mpi(os.environ)  # both as for a training
        compat.take_gpus_by_name(os.environ)
        from yolods.distributed.store import open_store
        from yolods.telemetry import open_log
        from yolods.trace.tracing import WARM_UP
        from yolods.training.start import start_run
        from yolods.watchdog.watchdog import Watchdog

        with join_timeout():
            config = ranks.main_first(lambda: traced_config(args, ranks.size, ranks.device.type))
            kv_store = open_store(ranks)
        watchdog = Watchdog(kv_store, ranks, config.deepspeed.own.watchdog, None)
        with noted(), open_log(None, ranks.rank, ranks.host), watchdog:
            run = start_run(config, ranks, kv_store, watchdog)
            run.rehearse(WARM_UP + config.trace, None if args.epoch is None else args.epoch - 1)
    return 0
