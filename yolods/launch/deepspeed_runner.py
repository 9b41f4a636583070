"""DeepSpeed's launcher, with requests to stop that reach every rank and truthful exit statuses.

This module corrects four points of the stock `deepspeed.launcher.runner` (0.19.8), by giving it
replacements for the modules `subprocess` and `signal`. It becomes unnecessary when the stock runner
passes tests/faults/test_requests.py.

- If its child dies by a signal, the stock runner exits with 0; here with 128 plus the signal.
- On one host, SIGTERM kills the stock runner and leaves its child running. On several hosts it
  kills pdsh first, and with it the output of ranks that are still saving. Here ranks are asked to
  stop, and the runner waits for their output.
- Ctrl-C ends the stock runner with a traceback while its children are still shutting down.
- A child does not notice that the stock runner has died; here the kernel signals it.

On each host it starts `node_launcher` instead of DeepSpeed's module.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from yolods.launch.supervisor import be_a_child
from yolods.system.interrupt import by_a_user, heed, passed_on

DEEPSPEED_LAUNCH, NODE_LAUNCHER = "deepspeed.launcher.launch", "yolods.launch.node_launcher"
"""DeepSpeed's module that starts the ranks of a host, and our replacement."""

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


class Module:
    """Proxy of another module; names that a subclass defines replace the module's."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Subprocess(Module):
    """`subprocess`, extended to remember the process that the runner waits for."""

    child: subprocess.Popen[bytes] | None = None
    hands_on = False
    """Whether the child is this host's launcher, which forwards any request to its ranks."""

    def Popen(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
        """Start the child."""
        # Their own session shields pdsh and ssh from the terminal's Ctrl-C, which would cut the
        # connections that carry the ranks' output.
        apart = command[0] in ("pdsh", "mpirun", "srun")
        self.hands_on = DEEPSPEED_LAUNCH in command
        command = [NODE_LAUNCHER if word == DEEPSPEED_LAUNCH else word for word in command]
        self.child = subprocess.Popen(
            command, preexec_fn=be_a_child, start_new_session=apart, **settings
        )
        return self.child


class OurHandlers(Module):
    """`signal`, except that DeepSpeed cannot replace our handlers."""

    def signal(self, number: int, handler: Any) -> Any:
        """Keep the present handler and return it."""
        return signal.getsignal(number)


class _Stop:
    """Handler that asks the ranks to stop, once per request; the runner keeps waiting for them."""

    def __init__(self, children: _Subprocess) -> None:
        self._children = children
        self.kill: list[str] | None = None
        """Start of pdsh's command, and the pattern of the remote launchers; None: no other
        hosts."""
        self.asked: int | None = None

    def __call__(self, number: int, frame: Any) -> None:
        self.asked = self.asked or by_a_user(number)
        handed = passed_on(number)
        if self.kill is not None:
            *pdsh, pattern = self.kill
            command = [*pdsh, f"pkill -{handed:d} -f {pattern}"]
            with suppress(OSError):
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        elif self._children.child is not None:
            with suppress(ProcessLookupError):
                self._children.child.send_signal(
                    handed if self._children.hands_on else signal.SIGTERM
                )


def meant(kill: Sequence[str]) -> list[str]:
    """The start of pdsh's command, and a pattern that matches only our launchers on the hosts.

    Args:
        kill: DeepSpeed's command. Its pattern omits the last letter of the module and also matches
            pdsh and the remote shells, which must survive: ranks print through them while saving.
    """
    *pdsh, _, pattern = kill
    return [*pdsh, f"^{pattern.replace(DEEPSPEED_LAUNCH[:-1], NODE_LAUNCHER)}"]


def main() -> int:
    """Run the launcher with this process's arguments."""
    if "--launcher" not in sys.argv and os.environ.get(VISIBLE_DEVICES):
        # Ranks start on this machine, and the slots already say which GPUs they use. With the
        # variable set, DeepSpeed would print that it ignores it.
        del os.environ[VISIBLE_DEVICES]
    children = _Subprocess(subprocess)
    stop = _Stop(children)
    # Before the import, which takes seconds: a request to stop must not end in a traceback.
    heed(stop)
    from deepspeed.launcher import multinode_runner, runner

    from yolods import compat

    def note(kill: Sequence[str]) -> list[str]:
        stop.kill = meant(kill)
        return stop.kill

    compat.change_kill_command(multinode_runner.PDSHRunner, note)
    compat.lend(runner, children, OurHandlers(signal))
    if stop.asked is not None:  # during the import
        return 128 + stop.asked
    try:
        runner.main()
        code = children.child.returncode if children.child is not None else 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    if stop.asked is not None and code != 0:  # DeepSpeed's launchers exit with 1 instead
        return 128 + stop.asked
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
