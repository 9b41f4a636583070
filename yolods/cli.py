"""The command line: finds the command among the words, checks the environment, calls the command,
and turns errors into messages and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from functools import partial

from yolods import __version__, compat
from yolods.commands import USER_ERROR
from yolods.commands.launching import launch
from yolods.commands.one_process import (
    completion_command,
    doctor_command,
    export_command,
    pack_command,
    plan_command,
)
from yolods.commands.parsers import HELP
from yolods.commands.running import demo_command, link_test_command, train_command, val_command
from yolods.commands.trace_run import trace_command
from yolods.errors import OwnError, UserError, nearest
from yolods.system import streams
from yolods.system.interrupt import Stopped
from yolods.system.invocation import launch_command

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

RANK_COMMANDS = ("train", "val", "demo", "trace", "link-test")
"""Commands that a launcher runs as ranks; `link-test` is only for those of `plan --links`."""

INTERRUPTED = 130
"""The exit status after Ctrl-C."""
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that this user may not use, or that is not what it seems."""

ELSEWHERE = {
    "predict": "YOLO('best.pt').predict(...)",
    "track": "YOLO('best.pt').track(...)",
    "benchmark": "YOLO('best.pt').benchmark(...)",
    "tune": "YOLO('yolov5nu.pt').tune(...)",
}
"""Commands of ultralytics that yolods lacks, and the calls that do the same with a finished
model."""


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
        "train": train_command,
        "val": val_command,
        "export": export_command,
        "demo": demo_command,
        "launch": partial(launch, dispatch=_dispatch),
        "doctor": doctor_command,
        "pack": pack_command,
        "plan": plan_command,
        "trace": trace_command,
        "completion": completion_command,
    }
    if command in ELSEWHERE:
        raise UserError(
            f"yolods has no '{command}'; use ultralytics on best.pt: {ELSEWHERE[command]}"
        )
    run = commands.get(command) or {"link-test": link_test_command}.get(command)
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
