"""DeepSpeed's launcher, run so that Ctrl-C ends it as quietly as it ends the ranks.

Stock `deepspeed.launcher.runner` (0.19.8) dies of Ctrl-C with a traceback while its children are still on their way
out. Here it waits for them and ends with 130. Not needed once the stock runner does the same.
"""

from __future__ import annotations

import os

INTERRUPTED = 130


def main() -> int:
    """Run the launcher with this process' arguments."""
    try:
        from deepspeed.launcher import runner

        runner.main()
    except KeyboardInterrupt:
        _wait_for_children()
        return INTERRUPTED
    return 0


def _wait_for_children() -> None:
    while True:
        try:
            os.wait()
        except KeyboardInterrupt:  # a second one: they know already
            continue
        except ChildProcessError:
            return


if __name__ == "__main__":
    raise SystemExit(main())
