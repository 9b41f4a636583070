"""DeepSpeed's launcher of one host, run so that ranks which are asked to stop have the time that they need for it.

Of stock `deepspeed.launcher.launch` (0.19.8) two things are put right, as in `deepspeed_runner`:

- Asked to stop, it asks its first rank, waits for that one alone, and kills after 30 seconds: a step with its
  checkpoint may take longer. Here every rank is asked and waited for; one that is stuck is the watchdog's affair.
- Ctrl-C while it or its ranks still import ends in their tracebacks.
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
    """`subprocess`, which remembers the ranks that it starts."""

    def __init__(self) -> None:
        super().__init__(subprocess)
        self._started: list[subprocess.Popen[bytes]] = []
        self.asked: int | None = None

    def Popen(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
        """Start a rank."""
        self._started.append(subprocess.Popen(command, preexec_fn=hold_ctrl_c, **settings))
        if self.asked is not None:  # meanwhile
            self.stop(self.asked, None)
        return self._started[-1]

    def stop(self, number: int, frame: Any) -> None:
        """Ask all ranks to stop."""
        self.asked = self.asked or number
        logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)  # statuses of ranks that stop are no errors
        for rank in self._started:
            with suppress(ProcessLookupError):
                rank.send_signal(passed_on(number))


def main() -> int:
    """Run the launcher with this process' arguments."""
    ranks = _Ranks()
    heed(ranks.stop)
    from deepspeed.launcher import launch

    from yolods import compat

    compat.lend(launch, ranks, OurHandlers(signal))
    if ranks.asked is not None:  # while that was imported
        return 128 + ranks.asked
    launch.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
