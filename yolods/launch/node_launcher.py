"""DeepSpeed's launcher of one host, with enough time for ranks that are asked to stop.

This module corrects two points of the stock `deepspeed.launcher.launch` (0.19.8), in the same way
as `deepspeed_runner`:

- Asked to stop, the stock launcher asks and awaits only its first rank, and kills all ranks after
  30 seconds; a step and a checkpoint may take longer. Here it asks and awaits every rank. The
  watchdog ends a rank that is stuck.
- Ctrl-C while the launcher or its ranks are importing ends in tracebacks.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from yolods.launch.deepspeed_runner import Module, OurHandlers
from yolods.system.interrupt import heed, hold_ctrl_c, passed_on


class _Ranks(Module):
    """`subprocess`, extended to remember the ranks that it starts."""

    def __init__(self) -> None:
        super().__init__(subprocess)
        self._started: list[subprocess.Popen[bytes]] = []
        self.asked: int | None = None

    def Popen(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
        """Start a rank."""
        self._started.append(subprocess.Popen(command, preexec_fn=hold_ctrl_c, **settings))
        if self.asked is not None:  # the request came before this rank was in the list
            self.stop(self.asked, None)
        return self._started[-1]

    def stop(self, number: int, frame: Any) -> None:
        """Ask all ranks to stop."""
        self.asked = self.asked or number
        # A rank's status after a stop is no error.
        logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)
        for rank in self._started:
            with suppress(ProcessLookupError):
                rank.send_signal(passed_on(number))


def main() -> int:
    """Run the launcher with this process's arguments."""
    ranks = _Ranks()
    heed(ranks.stop)
    from deepspeed.launcher import launch

    from yolods import compat

    compat.lend(launch, ranks, OurHandlers(signal))
    if ranks.asked is not None:  # during the import
        return 128 + ranks.asked
    launch.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
