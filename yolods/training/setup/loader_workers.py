"""How many processes load a rank's images: no more than its share of the host's cores."""

from __future__ import annotations

import os
from dataclasses import replace

from yolods.config import RunConfig


def limit_workers(config: RunConfig, local_ranks: int) -> RunConfig:
    """Limit the loader processes to a rank's share of the cores, and note it for the log."""
    share = max(cores() // local_ranks, 1)
    if config.workers <= share:
        return config
    note = (
        f"--workers {config.workers}: a rank starts {share}, its share of this host's cores "
        f"({cores()} / {local_ranks})"
    )
    # The configuration of a resumed run already contains such a line.
    notes = tuple(one for one in config.notes if not one.startswith("--workers "))
    return replace(config, workers=share, notes=(*notes, note))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
