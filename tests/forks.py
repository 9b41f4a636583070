"""One Python that has imported torch, DeepSpeed and ultralytics, and forks a process for whatever the tests ask of it.

    test process                          one Python for all tests             a process for each call
    forked("tests.x:f", {..}, ..)  ---->  has imported everything, forks  ---> tests.x.f(**{..}), screen to a file
                         code      <----  waits for its end, or ends it   <---

The imports take about seven seconds of CPU, which each process would have to spend for itself. The Python that forks
never calls anything of what it has imported: every call finds it as fresh as the first.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    *("deepspeed", "deepspeed.runtime.superoffload.superoffload_stage3", "torch.distributed.nn.functional"),
    *("ultralytics.nn.tasks", "ultralytics.utils.loss", "ultralytics.engine.trainer"),
    *("torch._dynamo", "torch._inductor.compile_fx"),
)
"""What a rank that trains would import; the last line only as DeepSpeed's engine does."""
START_SECONDS = 120.0
"""Limit on the imports, which other jobs on the machine can make ten times as slow."""
GRACE_SECONDS = 10.0
"""How much later than a call's limit the answer may come."""

_server: subprocess.Popen[str] | None = None


def forked(
    function: str,
    arguments: Mapping[str, Any],
    *,
    screen: Path,
    timeout: float,
    env: Mapping[str, str] | None = None,
) -> int | None:
    """Call `module:function` with `arguments` in a new process, of a session of its own, at the repository's root.

    Args:
        function: its return value becomes the exit status, as of `sys.exit`.
        arguments: as JSON takes them.
        screen: file for all that is printed.
        timeout: seconds, the first call's imports not counted.
        env: the whole environment; None: that of the tests, with this tree's yolods.

    Returns:
        exit status, 1 where an exception came through; None when time ran out. All that the call started is dead.
    """
    call = {"function": function, "arguments": arguments, "screen": str(screen), "timeout": timeout}
    call["env"] = dict(environment() if env is None else env)
    try:
        server = _running()
        server.stdin.write(json.dumps(call) + "\n")
        server.stdin.flush()
        return json.loads(_answer(server, timeout + GRACE_SECONDS))
    except BaseException:  # pytest-timeout's own limit or Ctrl-C, too: the call may still run
        stop()
        raise


def environment() -> dict[str, str]:
    """The tests' own, with this tree's yolods, and without GPUs: several ranks would have to share one."""
    return {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def server_pid() -> int | None:
    """The Python that forks, where it runs: it outlives the tests."""
    return None if _server is None else _server.pid


def stop() -> None:
    """End the Python that forks, and whatever it is busy with."""
    global _server
    if _server is not None:
        if _server.poll() is None:
            end_family(_server.pid)
            _server.wait()
        _server.stdin.close()
        _server.stdout.close()
        _server = None


def end_family(pid: int) -> None:
    """SIGKILL for a process and all its descendants, whatever group they are in."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for member in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def _running() -> subprocess.Popen[str]:
    global _server
    if _server is None or _server.poll() is not None:
        stop()
        _server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(stop)
        _answer(_server, START_SECONDS)
    return _server


def _answer(server: subprocess.Popen[str], seconds: float) -> str:
    ready, _, _ = select.select([server.stdout], [], [], seconds)
    assert ready, f"the Python that forks (pid {server.pid}) has not answered in {seconds:g} s"
    line = server.stdout.readline()
    assert line, f"the Python that forks ended with {server.wait()}"
    return line


def main() -> None:
    """The Python that forks: import, and then answer call after call until the tests have ended."""
    from yolods import compat

    calls, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)  # what an import prints is no answer
    compat.prepare()
    compat.skip_needless_builds()
    compat.stand_in_for_torchvision()
    for module in IMPORTED:
        importlib.import_module(module)
    # A lock that another thread holds would stay locked in the forks for ever.
    assert psutil.Process().num_threads() == 1, "an import has started a thread: this process cannot be forked"
    gc.freeze()  # a collection in a fork need not go through a million objects of the imports
    print("ready", file=answers, flush=True)
    for line in calls:
        print(json.dumps(_serve(json.loads(line), (calls.fileno(), answers.fileno()))), file=answers, flush=True)


def _serve(call: dict[str, Any], pipes: tuple[int, int]) -> int | None:
    """Fork, and wait until the call is over or may go on no longer."""
    tests, deadline = os.getppid(), time.monotonic() + call["timeout"]
    pid = os.fork()
    if not pid:
        for pipe in pipes:
            os.close(pipe)
        _be_the_call(call)
    while time.monotonic() < deadline and os.getppid() == tests:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what it may have left of its session
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    end_family(pid)
    os.waitpid(pid, 0)
    return None


def _be_the_call(call: dict[str, Any]) -> None:
    code: Any = 1
    try:
        os.setsid()
        screen = os.open(call["screen"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(screen, 1)
        os.dup2(screen, 2)
        os.environ.clear()
        os.environ |= call["env"]
        module, name = call["function"].split(":")
        code = getattr(importlib.import_module(module), name)(**call["arguments"]) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the code of the process that was forked


if __name__ == "__main__":
    main()
