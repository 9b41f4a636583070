"""Several ranks of one part, each a process: `world()` starts them, and this module's `main` is
what each one runs."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gpu_conductor import end
from benchmarks.gpu_job import ROOT, Job

TAIL = 400
"""Characters of a failed rank's screen that are told."""


def world(
    job: Job, function: str, size: int, seconds: float, **arguments: Any
) -> list[dict[str, Any]]:
    """Call `module:function(pretend=.., work=.., **arguments)` on every rank; what each returned, a
    mapping.

    Rank and size are in the environment, as launchers set them. Of a rank that failed, or was not
    over in time, there is `failed`: the end of its screen.

    Args:
        seconds: the most for all of them.
        arguments: as JSON takes them.
    """
    folder = job.work / function.split(":")[1]
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call = json.dumps({"pretend": job.pretend, "work": str(folder), **arguments})
    deadline = time.monotonic() + min(seconds, job.left)
    with ExitStack() as stack:
        processes = []
        for rank in range(size):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_WORLD_SIZE": size,
                "MASTER_PORT": port,
            }
            environ = {name: str(value) for name, value in variables.items()} | {
                "MASTER_ADDR": "127.0.0.1"
            }
            screen = stack.enter_context((folder / f"{rank}.screen").open("wb"))
            (folder / f"{rank}.json").unlink(missing_ok=True)
            words = [
                sys.executable,
                "-m",
                "benchmarks.gpu_world",
                function,
                call,
                str(folder / f"{rank}.json"),
            ]
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, **environ},
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(end, process)
            processes.append(process)
        late = [not _ended(process, deadline) for process in processes]
    return [_result(folder, rank, late[rank]) for rank in range(size)]


def _ended(process: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _result(folder: Path, rank: int, late: bool) -> dict[str, Any]:
    file = folder / f"{rank}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    screen = (folder / f"{rank}.screen").read_text(encoding="utf-8", errors="replace").rstrip()
    return {"failed": f"{'not over in time; ' if late else ''}rank {rank}: .. {screen[-TAIL:]}"}


def main() -> None:
    """One rank."""
    function, call, out = sys.argv[1:]
    module, name = function.split(":")
    arguments = json.loads(call)
    result = getattr(importlib.import_module(module), name)(
        **{**arguments, "work": Path(arguments["work"])}
    )
    partial = Path(f"{out}.part")
    partial.write_text(json.dumps(result, default=str), encoding="utf-8")
    partial.replace(out)


if __name__ == "__main__":
    main()
