"""Run a script as if the machine had a GPU: `python -m tests.rehearsal.pretended SCRIPT
[ARGUMENTS]`.

What was seen is printed to stderr at the end. Processes that the script starts have no GPU.
"""

from __future__ import annotations

import runpy
import sys

from yolods import compat


def main() -> None:
    """The script with its own arguments, in this process."""
    _, script, *words = sys.argv
    compat.prepare()
    compat.skip_needless_builds()
    compat.stand_in_for_torchvision()
    compat.import_muon_uncompiled()
    from tests.rehearsal.pretended import pretended_device

    sys.argv = [script, *words]
    with pretended_device() as world:
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            for line in [*world.record.faults(), *world.record.told()]:
                print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
