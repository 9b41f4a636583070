"""A rank that meets the others, says where it is, and leaves: what a launcher may start instead of
a training run."""

import json
import os

import torch
import torch.distributed as dist

from yolods import compat
from yolods.distributed.world import join_world, leave


def main() -> None:
    """Print one line of JSON."""
    compat.skip_needless_builds()
    ranks = join_world()
    met = torch.ones(1)
    dist.all_reduce(met)
    names = ("GLOO_SOCKET_IFNAME", "YOLODS_SAID")
    said = {
        "rank": ranks.rank,
        "host": ranks.host,
        "met": int(met),
        **{name: os.environ.get(name) for name in names},
    }
    leave()
    print(f"\n{json.dumps(said)}\n", end="", flush=True)


if __name__ == "__main__":
    main()
