"""The command line: parses the command and its flags and calls the module that does the work."""

from __future__ import annotations

import argparse
import errno
import json
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

from yolods import __version__, compat
from yolods.errors import OwnError, UserError, nearest
from yolods.parsing.command_line import FlagNames, FlagParser
from yolods.system import streams
from yolods.system.interrupt import Stopped, abrupt, held, noted, patient, release_ctrl_c
from yolods.system.invocation import LAUNCH, called, launch_command, tell_caller

if TYPE_CHECKING:
    from yolods.config import RunConfig
    from yolods.config.run_folder import Claim
    from yolods.data.spec import DataSpec
    from yolods.distributed.world import Ranks
    from yolods.errors import Faults
    from yolods.launch.args import LaunchFlags

USAGE = """usage: yolods COMMAND [flags]

  train     train a detector (through the launcher: {launcher} train, or deepspeed --module yolods train)
  val       evaluate a .pt on any number of ranks
  export    convert a checkpoint into a plain .pt
  pack      write images and labels into tar files that are read fast: yolods pack --data x.yaml --out DIR
  demo      train on the embedded data set
  trace     what every rank did in a few steps, as a trace and a picture: yolods trace runs/exp
  plan      choose the layout by memory and time, before anything runs: yolods plan --model x --ranks 8 --gpu A100
  doctor    find problems on every host before a run starts: yolods doctor --hostfile hosts
  completion  complete words and flags in a shell: source <(yolods completion bash)
  launch    start a command through DeepSpeed's launcher: yolods launch train --data x.yaml --hostfile hosts

yolods COMMAND --help lists the flags of a command."""  # noqa: E501

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

DEMO_RANKS = 2
"""Ranks of the demo on any machine: its batch must be divisible by them."""

RANK_COMMANDS = ("train", "val", "demo", "trace", "link-test")
"""Commands that a launcher runs as ranks; `link-test` is only for those of `plan --links`."""

USER_ERROR, INTERRUPTED = 2, 130
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that this user may not use, or that is not what it seems."""

HELP = {"-h", "-help", "--help"}
ELSEWHERE = {
    "predict": "YOLO('best.pt').predict(...)",
    "track": "YOLO('best.pt').track(...)",
    "benchmark": "YOLO('best.pt').benchmark(...)",
    "tune": "YOLO('yolov5nu.pt').tune(...)",
}
"""Commands of ultralytics that yolods lacks, and the calls that do the same with a finished
model."""
OTHER_FORMATS = frozenset(
    ("format", "include", "model", "imgsz", "half", "int8", "dynamic", "simplify", "opset", "nms")
)
"""Words of the exports of ultralytics and yolov5, which write other formats."""

_DOCTOR = (
    "Find problems on this machine or on every host before a run starts. Exit status 2: the run "
    "would fail."
)
NO_LEAKS = "leaks between the splits are looked for when the packs are complete"
_PACKS = (
    "Write a data set into packs: plain tar files with an index. A call that was stopped goes on "
    "where it ended."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit status: 0, 2 for a user error, 130 after Ctrl-C, 143 after SIGTERM, 75 if the
        launcher was lost.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    streams.open_all()
    try:
        _stand_somewhere()
        compat.prepare()
        return _dispatch(words)
    except UserError as error:
        if isinstance(error, OwnError) or not _is_another_rank(words):
            _tell(str(error))
        return USER_ERROR
    except OSError as error:
        if error.errno not in _DENIED or error.filename is None:
            raise
        _tell(f"{error.filename}: {error.strerror}; grant this user access, or choose another path")
        return USER_ERROR
    except KeyboardInterrupt as asked:
        if not isinstance(asked, Stopped):
            return INTERRUPTED
        from yolods.distributed.world import LOST

        return LOST if asked.lost else asked.status


def _is_another_rank(words: Sequence[str]) -> bool:
    """Whether rank 0 reports this process's errors, because all ranks find the same ones."""
    word = next((word for word in words if not word.startswith("-")), "")
    if word not in RANK_COMMANDS:
        return False
    from yolods.distributed.rank_env import rank_given

    return rank_given(os.environ) not in ("", "0")


def _tell(text: str) -> None:
    for line in text.splitlines():
        print(f"error: {line}" if line else "", file=sys.stderr)


def _dispatch(words: list[str]) -> int:
    """Run the command that the first word names; returns its exit status."""
    # DeepSpeed's stock launcher puts --local_rank=N before the command. A rank reads its number
    # from the environment instead.
    words = _without_local_rank(words)
    if not words or words[0] in (*HELP, "help"):
        streams.show(USAGE.format(launcher=launch_command()))
        return 0
    command, *flags = words
    if command in ("-V", "--version", "version"):
        streams.show(__version__)
        return 0
    commands = {
        "train": _train,
        "val": _val,
        "export": _export,
        "demo": _demo,
        "launch": _launch,
        "doctor": _doctor,
        "pack": _pack,
        "plan": _plan,
        "trace": _trace,
        "completion": _completion,
    }
    if command in ELSEWHERE:
        raise UserError(
            f"yolods has no '{command}'; use ultralytics on best.pt: {ELSEWHERE[command]}"
        )
    run = commands.get(command) or {"link-test": _link_test}.get(command)
    if run is None:
        raise UserError(
            f"unknown command '{command}'{nearest(command, commands)}; the commands are "
            f"{', '.join(commands)}"
        )
    _check_environment(ranks=command in RANK_COMMANDS)
    return run(flags)


def _without_local_rank(words: Sequence[str]) -> list[str]:
    """The words without `--local_rank=3` and `--local_rank 3`."""
    left: list[str] = []
    behind = False
    for word in words:
        if word.startswith(("--local_rank", "--local-rank")):
            behind = "=" not in word
            continue
        if not (behind and word.isdecimal()):
            left.append(word)
        behind = False
    return left


def _stand_somewhere() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise OwnError(
            f"the current folder no longer exists ({error.strerror}); cd to an existing one"
        ) from None


def _check_environment(*, ranks: bool) -> None:
    """Check this process's environment before anything is parsed.

    Its rank must be valid first, because the rank decides who reports errors of the flags.
    """
    from yolods.distributed.rank_env import check_packages, forget_empty, read_launched_rank
    from yolods.hosts.devices import NAMED, put_back
    from yolods.launch.env_check import check_variables

    check_packages(os.environ)
    check_variables(os.environ)
    forget_empty(os.environ)
    if ranks and read_launched_rank(os.environ).launched:
        # Before CUDA is initialised, which reads the variable only once.
        put_back(os.environ)
    else:  # no launcher set it for this process
        os.environ.pop(NAMED, None)


def _train_parser(*, for_help: bool = False) -> FlagParser:
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


def _val_parser(*, for_help: bool = False) -> FlagParser:
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


def _export_parser() -> FlagParser:
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


def _pack_parser() -> FlagParser:
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


def _doctor_parser() -> FlagParser:
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


def _trace_parser() -> FlagParser:
    from yolods.launch.args import add_launch_arguments
    from yolods.training.checks.trace_check import trace_parser

    parser = trace_parser()
    # Taken out of the words before; here they are for the help and the completion.
    add_launch_arguments(parser.add_argument_group("the launcher's flags"))
    return parser


def _launch(words: list[str]) -> int:
    """Check everything that a single process can check, then become DeepSpeed's launcher.

    A training run is supervised instead: this process stays and restarts the launcher.
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
    if rest and rest[0] == "doctor":
        faults.raise_if_any()
        return _examine(flags, rest[1:])
    if rest and rest[0] == "plan":
        faults.raise_if_any()
        return _show_plan(flags, rest[1:])
    if rest and rest[0] == "trace":
        faults.raise_if_any()
        return _launch_trace(flags, rest[1:])
    demo = bool(rest) and rest[0] == "demo"
    if demo:
        rest = ["train", *DEMO_FLAGS, *rest[1:]]
    if not rest or rest[0] not in ("train", "val") or HELP & set(rest):
        faults.raise_if_any()
        return _dispatch(rest)
    # The record of a run contains the typed command, also after restarts and on other hosts.
    os.environ[COMMAND] = shlex.join([*LAUNCH, *words])
    gpus = _count_gpus()
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
        check_val_arguments(_val_parser().read(rest[1:]))
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


def _launch_trace(flags: LaunchFlags, words: list[str]) -> NoReturn:
    """Check the run to trace, then become DeepSpeed's launcher."""
    from yolods.launch.command import launcher_command, ranks_of
    from yolods.training.checks.trace_check import flags_of_run, traced_config

    args, gpus = _trace_parser().take(words), _count_gpus()
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
        return check_train(_train_parser().read(words[1:]), ranks, "cuda" if gpus else "cpu", tell)

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
            _say_put_aside(config, claim)
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
    """The lines that a check refuses; for an unknown number of ranks, those for both 1 and 2
    ranks."""
    found = []
    for count in (1, 2) if ranks is None else (ranks,):
        try:
            check(count)
        except UserError as error:
            found.append(str(error).splitlines())
        else:
            return []
    return [line for line in found[0] if all(line in lines for lines in found)]


def _say_put_aside(config: RunConfig, claim: Claim) -> None:
    from yolods.launch.supervisor import say

    if claim.put_aside is not None:
        say(
            f"--exist-ok: moved the files of an earlier run in {config.run_dir} to "
            f"{claim.put_aside}"
        )


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


def _say_alone(what: str) -> None:
    """Print the first line of a process that no launcher started."""
    from yolods.distributed.rank_env import read_launched_rank

    if not read_launched_rank(os.environ).launched:
        from yolods.launch.supervisor import say

        say(
            f"version {__version__}: starting {what} in this process; importing the libraries "
            "takes a while"
        )


def _doctor(words: list[str]) -> int:
    from yolods.launch.args import split_words

    return _examine(*split_words(words))


def _examine(flags: LaunchFlags, words: list[str]) -> int:
    """Print the result of `yolods doctor`. Returns 0 if a run would start."""
    from yolods.config import DEMO, precheck_deepspeed
    from yolods.data.spec import places, read_spec, spare_places
    from yolods.doctor.run import run_doctor
    from yolods.errors import Faults
    from yolods.hosts.probe import pack_fault
    from yolods.launch.command import hosts_of

    args = _doctor_parser().take(words)
    hosts = hosts_of(flags, gpus=0 if flags.hostfile else _count_gpus())
    faults, trees, lists, spare = Faults(), (), (), frozenset()
    builds, fetched, leaks = False, (), []
    if args.deepspeed_config is not None:
        ranks, device = sum(len(host.chosen) for host in hosts), "cuda" if _count_gpus() else "cpu"
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


def _plan(words: list[str]) -> int:
    from yolods.launch.args import split_words

    return _show_plan(*split_words(words))


def _show_plan(flags: LaunchFlags, words: list[str]) -> int:
    """Print the result of `yolods plan`."""
    from yolods.launch.supervisor import say
    from yolods.planner.flags import plan_parser
    from yolods.telemetry.log import quiet_dependencies

    args = plan_parser().take(words)
    quiet_dependencies(logging.WARNING)
    with abrupt():
        from yolods.planner.command import run_plan
    streams.show(run_plan(args, flags, _count_gpus(), say))
    return 0


def _leaks(spec: DataSpec, *, asked: bool) -> list[str]:
    """Warnings of images of this host that are in two splits.

    Raises:
        UserError: the data cannot be trained on.
    """
    from yolods.data.leaks.look import look_for_leaks
    from yolods.system.folders import cache_dir

    found = look_for_leaks(spec, cache_dir(), asked=asked, progress=True)
    return [f"warning: {line}" for line in found]


def _count_gpus() -> int:
    from yolods.hosts.devices import count_gpus

    return count_gpus(os.environ)


def _train(words: list[str]) -> int:
    from yolods.distributed.rank_env import read_launched_rank

    args, place = (
        _train_parser(for_help=bool(HELP & set(words))).read(words),
        read_launched_rank(os.environ),
    )
    # Report errors before the slow imports. Among launched ranks, rank 0 checks everything beyond
    # the flags once the ranks have met.
    if args.faults or not place.launched:
        from yolods.training.checks.preflight import check_train

        check_train(args, place.size, "cuda" if _count_gpus() else "cpu")
    _say_alone("training")
    from yolods.config.run_folder import Claim
    from yolods.watchdog.failures import noted_in

    folder = Path(args.run_dir) if args.run_dir else None
    with noted_in(folder, args.start_id), Claim() as claim:
        return _train_rank(args, claim)


def _train_rank(args: argparse.Namespace, claim: Claim) -> int:
    from yolods.distributed.world import join_timeout, joined

    _prepare_libraries()
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
    _say_put_aside(config, claim)
    return config


def _val(words: list[str]) -> int:
    args = _val_parser(for_help=bool(HELP & set(words))).read(words)
    if args.faults:
        raise UserError("\n".join(args.faults))
    _say_alone("an evaluation")
    from yolods.distributed.world import join_timeout, joined

    _prepare_libraries()
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


def _trace(words: list[str]) -> int:
    from yolods.distributed.rank_env import read_launched_rank

    if not read_launched_rank(os.environ).launched:
        from yolods.launch.args import split_words

        _launch_trace(*split_words(words))
    from yolods.distributed.world import join_timeout, joined
    from yolods.training.checks.trace_check import traced_config

    args = _trace_parser().take(words)
    _prepare_libraries()
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


def _link_test(words: list[str]) -> int:
    """Measure links as one of the ranks that `plan --links` starts."""
    _prepare_libraries()
    from yolods.distributed.link_rank import run_link_rank

    run_link_rank()
    return 0


def _export(words: list[str]) -> int:
    names = {word.lstrip("-").partition("=")[0] for word in words}
    if found := sorted(names & OTHER_FORMATS):
        raise UserError(
            f"export {found[0]}: yolods export writes a .pt out of a run's checkpoint; for other "
            "formats, use ultralytics on best.pt: YOLO('best.pt').export(format='onnx')"
        )
    args = _export_parser().take(words)
    from yolods.checkpoint.convert import export

    _prepare_libraries(gpus=0)
    streams.show(str(export(Path(args.run), Path(args.to), live=args.live, fp32=args.fp32)))
    return 0


def _pack(words: list[str]) -> int:
    args = _pack_parser().take(words)
    with abrupt():
        from yolods.telemetry import open_log
        from yolods.telemetry.log import quiet_dependencies

        quiet_dependencies(logging.WARNING)
        from yolods.data.pack.command import run_pack
    with noted(), open_log(None):
        lines = run_pack(args)
    streams.show("\n".join(lines))
    return 0


def _completion(words: list[str]) -> int:
    from yolods.config.loggers import LOGGERS
    from yolods.config.names.recipes import recipes
    from yolods.launch.args import add_launch_arguments
    from yolods.parsing.completion import SHELLS, completion_script
    from yolods.planner.flags import plan_parser

    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"write yolods completion {' or '.join(SHELLS)}")
    plan, train = plan_parser(), _train_parser(for_help=True)
    add_launch_arguments(plan)
    parsers = {"train": train, "val": _val_parser(for_help=True), "export": _export_parser()}
    parsers |= {"pack": _pack_parser(), "demo": train, "plan": plan, "doctor": _doctor_parser()}
    parsers["trace"] = _trace_parser()
    values = {"--deepspeed_config": [*recipes(), "auto"], "--loggers": LOGGERS}
    streams.show(completion_script(words[0], parsers, ("completion", "launch"), values))
    return 0


def _demo(words: list[str]) -> int:
    return _train([*DEMO_FLAGS, *words])


@abrupt()
def _prepare_libraries(gpus: int | None = None) -> None:
    """Import the slow libraries, with their workarounds in place and their messages off the screen.

    Args:
        gpus: GPUs that this process uses; 0: none, whatever the machine has; default: counted.
    """
    from yolods.telemetry.log import quiet_dependencies

    quiet_dependencies(logging.WARNING)
    compat.accept_torch_optimizers()
    # Before DeepSpeed is imported, because it chooses its accelerator only once.
    if not (_count_gpus() if gpus is None else gpus):
        os.environ["DS_ACCELERATOR"] = "cpu"
        compat.skip_needless_builds()
    compat.leave_lost_ranks_to_the_watchdog(os.environ)
    compat.import_muon_uncompiled()
    compat.print_to_the_log()
    compat.stand_in_for_torchvision()
    quiet_dependencies(logging.WARNING)  # again: the imports have set levels of their own
