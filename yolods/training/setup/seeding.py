"""Seeds of a rank's random generators."""

from __future__ import annotations

import os

import torch

from yolods.data.sampler import keyed_seed, seed_generators


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed every generator identically on all ranks, so that weights start equal.

    Samples have seeds of their own and do not depend on this.
    """
    seed_generators("run", seed)
    # torch keeps this seed until a GPU is first used, and ignores it without one.
    torch.cuda.manual_seed_all(keyed_seed("cuda", seed) >> 1)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
