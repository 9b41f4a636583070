"""A fork server for the tests: one Python with torch, DeepSpeed and ultralytics forks for each
call.

    test process                          one Python for all tests             a process per call
    forked("tests.x:f", {..}, ..)  ---->  has imported everything, forks  ---> tests.x.f(**{..})
                         code      <----  waits for its end, or kills it  <---

    Popen([python, "-m", ..])     ---->  forks twice  ---> as the command (tests.as_started)
      a child of the test process <----  its process id

The imports take about seven seconds of CPU, which every process would otherwise spend. The fork
server never calls anything that it has imported, so that every call finds the same fresh state as
the first.
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

from tests.as_started import (
    IMPORT_TIME,
    ROOM_FOR_WORDS,
    Command,
    ForkedPopen,
    become,
    is_alone,
    remember,
)

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    *(
        "deepspeed",
        "deepspeed.runtime.superoffload.superoffload_stage3",
        "torch.distributed.nn.functional",
    ),
    *(
        "ultralytics.nn.tasks",
        "ultralytics.utils.loss",
        "ultralytics.engine.trainer",
        "ultralytics.models.yolo.detect",
    ),
    *(
        "torch.utils.tensorboard",
        "torch.profiler",
        "matplotlib.pyplot",
        "numpy.ma",
        "PIL.JpegImagePlugin",
    ),
    *("torch._dynamo", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.original_muon"),
)
"""The imports of a training rank; those in the last line are DeepSpeed's engine's."""
START_SECONDS = 120.0
"""Time limit of the imports, which other jobs on the machine can slow down tenfold."""
GRACE_SECONDS = 10.0
"""Time after a call's limit in which the answer must arrive."""
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class _Server:
    """The test process's view of the fork server."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    imported: Mapping[str, str]
    """The environment of its imports."""


_server: _Server | None = None


def forked(
    function: str,
    arguments: Mapping[str, Any],
    *,
    screen: Path,
    timeout: float,
    env: Mapping[str, str] | None = None,
) -> int | None:
    """Call `module:function` with `arguments` in a new process and session, at the repository's
    root.

    Args:
        function: its return value becomes the exit status, as in `sys.exit`.
        arguments: values that JSON can represent.
        screen: file for stdout and stderr.
        timeout: seconds, without the imports of the first call.
        env: the whole environment; None: the tests' own, with this tree's yolods.

    Returns:
        the exit status, 1 for an exception; None after a timeout. All processes of the call are
        dead.
    """
    call = {"function": function, "arguments": arguments, "screen": str(screen), "timeout": timeout}
    call["env"] = dict(environment() if env is None else env)
    return _asked(call, timeout + GRACE_SECONDS)


class Popen(ForkedPopen):
    """`subprocess.Popen` that forks the fork server for `python -m MODULE`, also in the started
    processes.

    tests.as_started lists the differences from exec. `start_new_session` is required.

    Raises:
        ValueError: a variable would have to be set before the imports.
    """

    def _fork(self, command: Command, streams: tuple[int, int, int], **settings: Any) -> int:
        if settings["prepare"] or not settings["new_session"]:
            raise ValueError("a command is forked in a session of its own, and without preexec_fn")
        env, imported = (
            dict(os.environ if settings["env"] is None else settings["env"]),
            environment(),
        )
        for name in IMPORT_TIME:
            if env.get(name) != imported.get(name):
                raise ValueError(
                    f"{name}={env.get(name)} needs a start by exec: at the imports it was "
                    f"{imported.get(name)}"
                )
        call = {
            "start": asdict(command),
            "cwd": os.fspath(settings["cwd"] or os.getcwd()),
            "env": env,
        }
        given = [place if stream == -1 else stream for place, stream in enumerate(streams)]
        return _asked(call, GRACE_SECONDS, given)


def environment() -> dict[str, str]:
    """The tests' environment with this tree's yolods, and without GPUs, which ranks would share."""
    return {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }


def server_pid() -> int | None:
    """The process id of the fork server, if it runs; it outlives a test."""
    return None if _server is None else _server.process.pid


def stop() -> None:
    """Kill the fork server and its current call, but not commands that `Popen` started."""
    global _server
    if _server is not None:
        if _server.process.poll() is None:
            end_family(_server.process.pid)
            _server.process.wait()
        _server.channel.close()
        _server = None


def end_family(pid: int) -> None:
    """Kill a process and all its descendants, in any process group."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for member in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def _asked(call: Mapping[str, Any], seconds: float, descriptors: Sequence[int] = ()) -> Any:
    """Send a call to the fork server and return the answer."""
    sys.audit("tests.fork", str(call.get("function") or call["start"]))
    try:
        server = _running()
        _send(server.channel, call, descriptors)
        return _answer(server, seconds)
    except BaseException:  # also pytest-timeout and Ctrl-C: the call may still run
        stop()
        raise


def _running() -> _Server:
    global _server
    if _server is None or _server.process.poll() is not None:
        stop()
        # A command's parent is a fork that has exited. As a subreaper, this process becomes the
        # parent, so that it can wait for the command.
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
        raise AssertionError(
            f"the fork server (pid {pid}) has not answered in {seconds:g} s"
        ) from None
    except (EOFError, ConnectionError):
        raise AssertionError(f"the fork server ended with {server.process.wait()}") from None


def _send(channel: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    line = f"{json.dumps(message)}\n".encode()
    sent = socket.send_fds(channel, [line], descriptors) if descriptors else 0
    channel.sendall(line[sent:])


def _receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """A message and its file descriptors. No second message is sent before it is answered.

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
    """Run the fork server: import, then answer calls until the tests end."""
    from yolods import compat

    channel = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    compat.prepare()
    compat.skip_needless_builds()
    compat.stand_in_for_torchvision()
    for module in IMPORTED:
        importlib.import_module(module)
    # A lock that another thread holds would stay locked in the forks forever.
    assert is_alone(), "an import started a thread, so this process cannot be forked"
    gc.freeze()  # spares forks from collecting a million objects of the imports
    remember()
    _send(channel, "ready")
    with suppress(EOFError):
        while True:
            call, descriptors = _receive(channel)
            _send(channel, _start(call, descriptors) if "start" in call else _serve(call, channel))
            for descriptor in descriptors:
                os.close(descriptor)


def _start(call: dict[str, Any], streams: Sequence[int]) -> int:
    """Fork a command and return its process id. It becomes a child of the test process."""
    reading, writing = os.pipe()
    # Twice: the first fork exits, so that the test process adopts the second one.
    between = os.fork()
    if not between:
        pid = os.fork()
        if not pid:
            become(
                Command(**call["start"]),
                streams,
                cwd=call["cwd"],
                env=call["env"],
                new_session=True,
            )
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    pid = int(os.read(reading, 20))
    os.close(reading)
    os.close(writing)
    return pid


def _serve(call: dict[str, Any], channel: socket.socket) -> int | None:
    """Fork, and wait for the call or kill it at its limit."""
    tests, deadline = os.getppid(), time.monotonic() + call["timeout"]
    pid = os.fork()
    if not pid:
        channel.close()
        _be_the_call(call)
    while time.monotonic() < deadline and os.getppid() == tests:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # processes that it left in its session
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
        os._exit(code)  # never return into the fork server's code


if __name__ == "__main__":
    main()
