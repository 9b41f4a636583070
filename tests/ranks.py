"""Runs a function of a test module on gloo ranks of this machine's CPU, with a time limit.

test process                     a fork of tests.forks             ranks
on_ranks("tests.x:f", (1, 2)) -> has imported everything; forks -> f(ranks, **arguments) on 1 rank,
                                                                   then on 2
                   {1: [..], 2: [..]}  <------------------------   the results of f, in files
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.forks import forked

STACK_SECONDS = 1.0
"""Time for ranks to write their stacks after a timeout."""
SHOWN_CHARACTERS = 6000


def on_ranks(
    function: str,
    sizes: Sequence[int],
    *,
    timeout: float = 60.0,
    once: str | None = None,
    within: str | None = None,
    **arguments: Any,
) -> dict[int, list[Any]]:
    """Call `module:function` as `f(ranks, **arguments)` on every rank, for each world size.

    `ranks` is a `yolods.distributed.world.Ranks`. Returns the ranks' results in order, by world
    size.

    Args:
        sizes: world sizes.
        within: `module:context_manager` that is entered before the ranks join; f receives its value
            as `within`.
        timeout: seconds per world, without imports; the next world may use what one leaves.
        once: `module:function`, called before the fork, so that all ranks find its cached results;
            it must not start a thread.
        arguments: values that JSON can represent.

    Raises:
        AssertionError: a rank failed (with its traceback), or time ran out (with every rank's
            stack).
    """
    with tempfile.TemporaryDirectory(prefix="yolods-ranks-") as name:
        folder = Path(name)
        call = {
            "function": function,
            "sizes": list(sizes),
            "timeout": timeout,
            "arguments": arguments,
            "folder": name,
        }
        call |= {"once": once, "within": within}
        screen, limit = folder / "screen", len(sizes) * timeout + 2 * STACK_SECONDS
        code = forked("tests.ranks:run_worlds", call, screen=screen, timeout=limit)
        assert code == 0, (
            f"{function} failed on ranks ({code}):\n{screen.read_text('utf-8', 'replace')}"
        )
        return {size: [_result(folder, size, rank) for rank in range(size)] for size in sizes}


def _result(folder: Path, size: int, rank: int) -> Any:
    import torch

    return torch.load(folder / f"{size}-{rank}.pt", weights_only=False)  # written by our own ranks


def run_worlds(
    function: str,
    sizes: Sequence[int],
    timeout: float,
    arguments: dict[str, Any],
    folder: str,
    once: str | None,
    within: str | None,
) -> int:
    """In a fork of the fork server: fork a world of each size; returns 1 if a rank failed."""
    called = partial(_call, _found(function), None if within is None else _found(within))
    if once is not None:
        _found(once)()
        # A lock that another thread holds would stay locked in the ranks forever.
        assert psutil.Process().num_threads() == 1, (
            f"{once} has started a thread: this process cannot be forked"
        )
    deadline = time.monotonic()
    for size in sizes:
        deadline += timeout
        fault = _run_world(called, size, deadline, arguments, Path(folder))
        if fault:
            print(fault)
            return 1
    return 0


def _found(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def _call(called: Any, within: Any, **arguments: Any) -> Any:
    """On a rank: call the function within its world."""
    from yolods.distributed.world import join_world, leave

    with ExitStack() as stack:
        if within is not None:
            arguments["within"] = stack.enter_context(within())
        result = called(join_world(), **arguments)
        leave()
    return result


def _run_world(
    called: Any, size: int, deadline: float, arguments: Mapping[str, Any], folder: Path
) -> str:
    """Fork `size` ranks and wait for all of them; returns a report of failures, or ""."""
    port = _free_port()
    logs = [folder / f"{size}-{rank}.log" for rank in range(size)]
    alive = {_fork(called, rank, size, port, arguments, folder): rank for rank in range(size)}
    failed: list[int] = []
    late = False
    while alive and not failed and not late:
        failed += _reap(alive)
        late = time.monotonic() > deadline
        time.sleep(0.02)
    account = [f"rank {rank} of {size} failed" for rank in failed]
    if late and alive:
        account = [f"time ran out for rank {', '.join(map(str, alive.values()))} of {size}"]
        for pid in alive:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(STACK_SECONDS)
    if account:
        # The first to fail tells the cause; the others only lost their partner.
        order = failed or range(size)
        account += [f"--- rank {rank} ---\n{_tail(logs[rank])}" for rank in order]
    for pid in alive:
        for member in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        os.waitpid(pid, 0)
    return "\n".join(account)


def _reap(alive: dict[int, int]) -> list[int]:
    """Remove the ranks that have exited from `alive`; returns those that failed."""
    failed = []
    for pid in list(alive):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            rank = alive.pop(pid)
            failed += [rank] if status else []
    return failed


def _fork(
    called: Any, rank: int, size: int, port: int, arguments: Mapping[str, Any], folder: Path
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # Written directly to the log: os._exit below flushes no other buffers.
        log = os.open(folder / f"{size}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)
        os.environ |= {
            **{
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
            },
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        import torch

        torch.save(called(**arguments), folder / f"{size}-{rank}.pt")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never return into the parent's code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    return (
        log.read_text(encoding="utf-8", errors="replace")[-SHOWN_CHARACTERS:]
        if log.exists()
        else "(no output)"
    )
