"""One Python that has imported torch, DeepSpeed and ultralytics, and forks a process for whatever the tests ask of it.

    test process                          one Python for all tests             a process for each call
    forked("tests.x:f", {..}, ..)  ---->  has imported everything, forks  ---> tests.x.f(**{..}), screen to a file
                         code      <----  waits for its end, or ends it   <---

    Popen([python, "-m", ..])     ---->  forks twice  ---> what the command would be (tests.as_started)
      a child of the test process <----  its number

The imports take about seven seconds of CPU, which each process would have to spend for itself. The Python that forks
never calls anything of what it has imported: every call finds it as fresh as the first.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.as_started import IMPORT_TIME, ROOM_FOR_WORDS, Command, ForkedPopen, become, is_alone, remember

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    *("deepspeed", "deepspeed.runtime.superoffload.superoffload_stage3", "torch.distributed.nn.functional"),
    *("ultralytics.nn.tasks", "ultralytics.utils.loss", "ultralytics.engine.trainer", "ultralytics.models.yolo.detect"),
    *("torch.utils.tensorboard", "torch.profiler", "matplotlib.pyplot", "numpy.ma", "PIL.JpegImagePlugin"),
    *("torch._dynamo", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.original_muon"),
)
"""What a rank that trains would import; the last line only as DeepSpeed's engine does."""
START_SECONDS = 120.0
"""Limit on the imports, which other jobs on the machine can make ten times as slow."""
GRACE_SECONDS = 10.0
"""How much later than a call's limit the answer may come."""
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class _Server:
    """The Python that forks, as the tests see it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    imported: Mapping[str, str]
    """The environment in which it has imported everything."""


_server: _Server | None = None


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
    return _asked(call, timeout + GRACE_SECONDS)


class Popen(ForkedPopen):
    """`subprocess.Popen` for which `python -m MODULE` is a fork of the Python that forks, as are the processes that
    this one starts so; tests.as_started says what is other than after exec. It takes `start_new_session`.

    Raises:
        ValueError: a variable is meant for an import, and those are over.
    """

    def _fork(self, command: Command, streams: tuple[int, int, int], **settings: Any) -> int:
        if settings["prepare"] or not settings["new_session"]:
            raise ValueError("a command is forked in a session of its own, and without preexec_fn")
        env, imported = dict(os.environ if settings["env"] is None else settings["env"]), environment()
        for name in IMPORT_TIME:
            if env.get(name) != imported.get(name):
                raise ValueError(
                    f"{name}={env.get(name)} needs a start by exec: at the imports it was {imported.get(name)}"
                )
        call = {"start": asdict(command), "cwd": os.fspath(settings["cwd"] or os.getcwd()), "env": env}
        given = [place if stream == -1 else stream for place, stream in enumerate(streams)]
        return _asked(call, GRACE_SECONDS, given)


def environment() -> dict[str, str]:
    """The tests' own, with this tree's yolods, and without GPUs: several ranks would have to share one."""
    return {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def server_pid() -> int | None:
    """The Python that forks, where it runs: it outlives the tests."""
    return None if _server is None else _server.process.pid


def stop() -> None:
    """End the Python that forks, and whatever it is busy with; not the commands that `Popen` has started."""
    global _server
    if _server is not None:
        if _server.process.poll() is None:
            end_family(_server.process.pid)
            _server.process.wait()
        _server.channel.close()
        _server = None


def end_family(pid: int) -> None:
    """SIGKILL for a process and all its descendants, whatever group they are in."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for member in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def _asked(call: Mapping[str, Any], seconds: float, descriptors: Sequence[int] = ()) -> Any:
    """The answer to a call."""
    sys.audit("tests.fork", str(call.get("function") or call["start"]))
    try:
        server = _running()
        _send(server.channel, call, descriptors)
        return _answer(server, seconds)
    except BaseException:  # pytest-timeout's own limit or Ctrl-C, too: the call may still run
        stop()
        raise


def _running() -> _Server:
    global _server
    if _server is None or _server.process.poll() is not None:
        stop()
        # A command's parent is a fork that has ended: Linux hands it to the nearest process that asks for orphans.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", ROOM_FOR_WORDS],
                cwd=ROOT,
                env=environment(),
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        _server = _Server(process, ours, environment())
        atexit.register(stop)
        _answer(_server, START_SECONDS)
    return _server


def _answer(server: _Server, seconds: float) -> Any:
    server.channel.settimeout(seconds)
    try:
        return _receive(server.channel)[0]
    except TimeoutError:
        pid = server.process.pid
        raise AssertionError(f"the Python that forks (pid {pid}) has not answered in {seconds:g} s") from None
    except (EOFError, ConnectionError):
        raise AssertionError(f"the Python that forks ended with {server.process.wait()}") from None


def _send(channel: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    line = f"{json.dumps(message)}\n".encode()
    sent = socket.send_fds(channel, [line], descriptors) if descriptors else 0
    channel.sendall(line[sent:])


def _receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """A message, and the descriptors that came with it. Nobody sends a second one before it is answered.

    Raises:
        EOFError: the other end is closed.
    """
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        part, came, *_ = socket.recv_fds(channel, 1 << 16, 3)
        if not part:
            raise EOFError
        line, descriptors = line + part, [*descriptors, *came]
    return json.loads(line), descriptors


def main() -> None:
    """The Python that forks: import, and then answer call after call until the tests have ended."""
    from yolods import compat

    channel = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    compat.prepare()
    compat.skip_needless_builds()
    compat.stand_in_for_torchvision()
    for module in IMPORTED:
        importlib.import_module(module)
    # A lock that another thread holds would stay locked in the forks for ever.
    assert is_alone(), "an import has started a thread: this process cannot be forked"
    gc.freeze()  # a collection in a fork need not go through a million objects of the imports
    remember()
    _send(channel, "ready")
    with suppress(EOFError):
        while True:
            call, descriptors = _receive(channel)
            _send(channel, _start(call, descriptors) if "start" in call else _serve(call, channel))
            for descriptor in descriptors:
                os.close(descriptor)


def _start(call: dict[str, Any], streams: Sequence[int]) -> int:
    """Fork a command for the tests, and return its number. It is an orphan, which they take in."""
    reading, writing = os.pipe()
    between = os.fork()
    if not between:
        pid = os.fork()
        if not pid:
            become(Command(**call["start"]), streams, cwd=call["cwd"], env=call["env"], new_session=True)
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    pid = int(os.read(reading, 20))
    os.close(reading)
    os.close(writing)
    return pid


def _serve(call: dict[str, Any], channel: socket.socket) -> int | None:
    """Fork, and wait until the call is over or may go on no longer."""
    tests, deadline = os.getppid(), time.monotonic() + call["timeout"]
    pid = os.fork()
    if not pid:
        channel.close()
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
