"""DeepSpeed's launcher, run so that requests to stop reach every rank, and a death is told from an end.

Of stock `deepspeed.launcher.runner` (0.19.8) four things are put right, by giving that module other `subprocess` and
`signal` modules to call. None is needed any more once the stock runner passes tests/faults/test_requests.py.

- Where its child dies by a signal it ends with 0; here with 128 and the signal's number.
- Alone, it dies of SIGTERM and leaves its child running; over several hosts it kills pdsh first, and with it the
  screen that ranks print on while they save. Here ranks are told to stop, and their output is waited for.
- It dies of Ctrl-C with a traceback while its children are still on their way out.
- A child does not notice that the runner is gone; here the kernel tells it.

What it starts on each host is `node_launcher` in place of DeepSpeed's module.
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
"""The module that starts the ranks of a host, and that which stands in for it."""

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


class Module:
    """Another module, but for the names that a subclass has."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Subprocess(Module):
    """`subprocess`, which remembers the process that the runner waits for."""

    child: subprocess.Popen[bytes] | None = None
    hands_on = False
    """Whether it is the launcher of this host, which asks its ranks as it is asked."""

    def Popen(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
        """Start it."""
        # pdsh and ssh have a terminal's Ctrl-C kept from them: it would cut the connections that ranks print over.
        apart = command[0] in ("pdsh", "mpirun", "srun")
        self.hands_on = DEEPSPEED_LAUNCH in command
        command = [NODE_LAUNCHER if word == DEEPSPEED_LAUNCH else word for word in command]
        self.child = subprocess.Popen(command, preexec_fn=be_a_child, start_new_session=apart, **settings)
        return self.child


class OurHandlers(Module):
    """`signal`, which leaves our handlers in place."""

    def signal(self, number: int, handler: Any) -> Any:
        """Does nothing."""
        return signal.getsignal(number)


class _Stop:
    """Tells ranks to stop, once a request; the runner goes on waiting for them."""

    def __init__(self, children: _Subprocess) -> None:
        self._children = children
        self.kill: list[str] | None = None
        """The start of pdsh's command, and which launchers on the hosts are meant; None: there are none."""
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
                self._children.child.send_signal(handed if self._children.hands_on else signal.SIGTERM)


def meant(kill: Sequence[str]) -> list[str]:
    """The start of pdsh's command, and a pattern that fits our launchers on the hosts.

    Args:
        kill: DeepSpeed's command. Its pattern lacks the last letter, and fits pdsh and the remote shells as well, which
            have to stay: ranks print through them while they save.
    """
    *pdsh, _, pattern = kill
    return [*pdsh, f"^{pattern.replace(DEEPSPEED_LAUNCH[:-1], NODE_LAUNCHER)}"]


def main() -> int:
    """Run the launcher with this process' arguments."""
    if "--launcher" not in sys.argv and os.environ.get(VISIBLE_DEVICES):
        # Ranks start here, and the slots say which GPUs they take. DeepSpeed would say that it ignores the variable.
        del os.environ[VISIBLE_DEVICES]
    children = _Subprocess(subprocess)
    stop = _Stop(children)
    heed(stop)
    from deepspeed.launcher import multinode_runner, runner

    from yolods import compat

    def note(kill: Sequence[str]) -> list[str]:
        stop.kill = meant(kill)
        return stop.kill

    compat.change_kill_command(multinode_runner.PDSHRunner, note)
    compat.lend(runner, children, OurHandlers(signal))
    if stop.asked is not None:  # while that was imported
        return 128 + stop.asked
    try:
        runner.main()
        code = children.child.returncode if children.child is not None else 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    if stop.asked is not None and code != 0:  # DeepSpeed's launchers say 1
        return 128 + stop.asked
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
