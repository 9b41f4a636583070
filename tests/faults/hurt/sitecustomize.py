"""Python imports this by itself where its folder is on the path: hurts one rank of a run at one
place, once.

HURT is JSON: `rank`, `phase` and `times` (the phase's how-manyth beginning on that rank), `what`
happens, and `flag`, a file that is made at that moment and keeps the restarted run whole; or
`always`, and no restart is spared.
"""

import json
import os
import signal
import sys
import time


def hurt(what: str) -> None:
    """Do it to this process."""
    if what == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "exit":
        sys.exit(7)
    elif what == "exception":
        raise RuntimeError("planted")
    elif what == "stuck":
        time.sleep(1000)
    elif what == "launcher":
        os.kill(os.getppid(), signal.SIGKILL)


def plant(plan: dict) -> None:
    """Wrap `phases.mark`, through which a rank says what it begins."""
    from yolods.distributed import phases

    mark, seen = phases.mark, [0]

    def marked(phase: str, number: int | None = None, **rest: int) -> None:
        mark(phase, number, **rest)
        seen[0] += phase == plan["phase"]
        if phase == plan["phase"] and seen[0] == plan["times"] and not os.path.exists(plan["flag"]):
            if not plan.get("always"):
                with open(plan["flag"], "w") as file:
                    file.write(str(time.time()))
            hurt(plan["what"])

    phases.mark = marked


if "HURT" in os.environ and "RANK" in os.environ:
    plan = json.loads(os.environ["HURT"])
    if plan["rank"] == int(os.environ["RANK"]):
        plant(plan)
