"""`yolods launch`: checks what a single process can check, then starts a command's ranks by
DeepSpeed's launcher."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from yolods import __version__
from yolods.commands import USER_ERROR
from yolods.commands.one_process import examine, show_plan
from yolods.commands.parsers import HELP, trace_parser, train_parser, val_parser
from yolods.commands.running import DEMO_FLAGS, say_put_aside
from yolods.errors import UserError
from yolods.hosts.devices import count_gpus
from yolods.system.interrupt import held, release_ctrl_c
from yolods.system.invocation import LAUNCH, called, tell_caller

if TYPE_CHECKING:
    from yolods.config import RunConfig
    from yolods.errors import Faults
    from yolods.launch.args import LaunchFlags

DEMO_RANKS = 2
"""Ranks of the demo on any machine: its batch must be divisible by them."""


def launch(words: list[str], *, dispatch: Callable[[list[str]], int]) -> int:
    """Check everything that a single process can check, then become DeepSpeed's launcher.

    A training run is supervised instead: this process stays and restarts the launcher.

    Args:
        words: the launcher's flags, a command, and the command's flags.
        dispatch: runs a command that needs no launcher; returns its exit status.
    """
    from yolods.distributed.rank_env import forget_ranks
    from yolods.errors import Faults
    from yolods.launch.args import COMMAND, LaunchFlags, read_words
    from yolods.launch.command import launcher_command, ranks_of
    from yolods.launch.supervisor import say
    from yolods.telemetry.log import quiet_dependencies

    # This process numbers the ranks itself: a rank left over in its environment would confuse them.
    lost = forget_ranks(os.environ)
    faults = Faults()
    flags, rest = read_words(words, faults)
    own_start = {"doctor": examine, "plan": show_plan, "trace": launch_trace}
    if rest and rest[0] in own_start:
        faults.raise_if_any()
        return own_start[rest[0]](flags, rest[1:])
    demo = bool(rest) and rest[0] == "demo"
    if demo:
        rest = ["train", *DEMO_FLAGS, *rest[1:]]
    if not rest or rest[0] not in ("train", "val") or HELP & set(rest):
        faults.raise_if_any()
        return dispatch(rest)
    # The record of a run contains the typed command, also after restarts and on other hosts.
    os.environ[COMMAND] = shlex.join([*LAUNCH, *words])
    gpus = count_gpus(os.environ)
    # Only if the user chose no ranks: with more GPUs than the demo's batch divides by, use fewer.
    if demo and gpus > DEMO_RANKS and flags == LaunchFlags():
        flags = LaunchFlags(num_gpus=DEMO_RANKS)
    ranks = None
    with faults.caught():
        counted = ranks_of(flags, gpus=gpus)
        # A flag with a fault counts as not given, so the number may not be the intended one.
        ranks = None if faults else counted
    if rest[0] == "train":
        return _launch_train(rest, flags, ranks, gpus, lost, faults)
    # Before the import below, because ultralytics prints a greeting on its first start.
    quiet_dependencies(logging.WARNING)
    from yolods.evaluation.validate import check_val_arguments

    with faults.caught():
        command, variables = launcher_command(rest, flags, gpus=gpus, python=sys.executable)
    with faults.caught():
        check_val_arguments(val_parser().read(rest[1:]))
    faults.raise_if_any()
    _tell_lost(lost)
    if flags.max_restarts != LaunchFlags.max_restarts:
        say("--max_restarts has no effect: an evaluation is not restarted")
    _say_start("an evaluation", flags, gpus)
    _become(command, variables)


def _become(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Replace this process by DeepSpeed's launcher."""
    with held():  # until the launcher handles Ctrl-C itself, after its imports
        os.execvpe(command[0], command, {**os.environ, **variables})


def launch_trace(flags: LaunchFlags, words: list[str]) -> NoReturn:
    """Check the run to trace, then become DeepSpeed's launcher.

    Args:
        flags: the launcher's.
        words: the flags of `yolods trace`.
    """
    from yolods.launch.command import launcher_command, ranks_of
    from yolods.training.checks.trace_check import flags_of_run, traced_config

    args, gpus = trace_parser().take(words), count_gpus(os.environ)
    flags = flags_of_run(args, flags, gpus)
    ranks, device = ranks_of(flags, gpus=gpus), "cuda" if gpus else "cpu"
    traced_config(args, ranks, device, launches=True)
    command, variables = launcher_command(
        ["trace", *words], flags, gpus=gpus, python=sys.executable
    )
    _say_start("a trace", flags, gpus)
    _become(command, variables)


def _tell_lost(variables: Sequence[str]) -> None:
    """Report variables of another launcher that would have had an effect."""
    from yolods.launch.supervisor import say

    if variables:
        say(
            f"ignoring {', '.join(variables)} in the environment: launch starts and numbers the "
            "ranks itself"
        )


def _launch_train(
    words: list[str],
    flags: LaunchFlags,
    ranks: int | None,
    gpus: int,
    lost: Sequence[str],
    faults: Faults,
) -> int:
    """Start the launcher, and restart it after failures.

    Args:
        ranks: number of ranks; None: unknown, and `faults` says why.
    """
    from yolods.config.run_folder import Claim
    from yolods.launch.command import launcher_command
    from yolods.launch.supervisor import end_with_parent, say, supervise
    from yolods.training.checks.preflight import check_train
    from yolods.training.restart import Restarts

    if caller := called():
        end_with_parent()
        release_ctrl_c()  # the caller has held it back until here

    def check(
        words: Sequence[str], ranks: int, tell: Callable[[str], object] | None = None
    ) -> RunConfig:
        return check_train(train_parser().read(words[1:]), ranks, "cuda" if gpus else "cpu", tell)

    with faults.caught():  # before a folder is claimed: a start that is refused must not leave one
        launcher_command(words, flags, gpus=gpus, python=sys.executable)
    # Add the faults of the configuration to the launcher's, so that the user sees all at once.
    if faults:
        for line in _refused(partial(check, words), ranks):
            faults.add(line)
        faults.raise_if_any()
    assert ranks is not None
    config = check(words, ranks, say)
    with Claim() as claim, ExitStack() as stack:
        if flags.node_rank:  # in a start on every host, the first host claims the folder
            tell = Path(stack.enter_context(TemporaryDirectory(prefix="yolods-")), "run")
        else:
            config, tell = claim.take(config), None
            tell_caller(caller, config.run_dir, config.start)
            say_put_aside(config, claim)
        starts = Restarts(
            words,
            flags,
            config.run_dir,
            gpus=gpus,
            check=check,
            run=config.run,
            start=config.start,
            tell=tell,
        )
        first = starts.first()
        _tell_lost(lost)
        _say_start("training", flags, gpus)
        status = supervise(first, starts.again, restarts=flags.max_restarts)
        if status == USER_ERROR:
            claim.refuse()
        return status


def _refused(check: Callable[[int], object], ranks: int | None) -> list[str]:
    """The lines with which a check refuses; for an unknown number of ranks, those that it has both
    for 1 rank and for 2."""
    found = []
    for count in (1, 2) if ranks is None else (ranks,):
        try:
            check(count)
        except UserError as error:
            found.append(str(error).splitlines())
        else:
            return []
    return [line for line in found[0] if all(line in lines for lines in found)]


def _say_start(what: str, flags: LaunchFlags, gpus: int) -> None:
    """Print a first line: rank 0 can print only after seconds, on a busy machine after a minute."""
    from yolods.launch.command import hosts_of, unused_flags
    from yolods.launch.supervisor import say
    from yolods.system.humanize import plural

    hosts = hosts_of(flags, gpus=gpus)
    if unused := unused_flags(flags, hosts):
        say(f"{', '.join(unused)}: no effect, because no other host takes part")
    ranks = plural(sum(len(host.chosen) for host in hosts), "rank")
    where = f"{', '.join(host.name for host in hosts[:8])}{' ...' if len(hosts) > 8 else ''}"
    say(
        f"version {__version__}: starting {what} on {ranks} ({where}); importing the libraries "
        "takes a while"
    )
