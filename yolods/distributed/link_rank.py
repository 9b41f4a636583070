"""The ranks that measure links, one per host: they exchange messages with their neighbours.

    1    hosts 0 - 1, 2 - 3, ...      each pair at the same time, and both ends send, as in a ring
    2    hosts 1 - 2, 3 - 4, ...      on both sides of a host, but not at once
    3    last - first                 if their number is odd

These are the links that rings and pipelines use, because hosts hold consecutive ranks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from yolods.distributed.world import LOST, Ranks, joined

MARK = "yolods-link "
"""Begins the lines of rank 0 for the process that started the ranks; a launcher may put more before
it."""
RANK_SECONDS = 240.0
"""A rank ends itself after this time, whatever it waits for: nobody else can reach it on its
host."""
MESSAGE_BYTES = tuple(2**power for power in range(18, 23))
"""Bytes of the messages, 256 KB to 4 MB: a token bucket passes smaller ones unhindered."""
REPEATS, PINGS = 5, 30
PAIR_SECONDS = 15.0
"""Time limit of a pair's messages by the estimate of the first ones; a slow link gets fewer
sizes."""


def run_link_rank() -> None:
    """Measure as a rank that a launcher has started. Rank 0 prints a line per link.

    Raises:
        UserError: as `join_world`.
    """
    timer = threading.Timer(RANK_SECONDS, _give_up)
    timer.daemon = True
    timer.start()
    with joined() as ranks:
        for pairs in rounds_of(ranks.size):
            ranks.barrier()
            own = [pair for pair in pairs if ranks.rank in pair]
            found = measure_pair(ranks, own[0]) if own else None
            for told in filter(None, ranks.to_main(found)):
                _print(told)
    timer.cancel()


def rounds_of(size: int) -> list[list[tuple[int, int]]]:
    """The links of a ring, divided so that no rank is in two pairs of a round."""
    links = [(rank, (rank + 1) % size) for rank in range(size if size > 2 else size - 1)]
    odd = [links.pop()] if size > 1 and size % 2 and size > 2 else []
    return [found for found in (links[::2], links[1::2], odd) if found]


def measure_pair(ranks: Ranks, pair: tuple[int, int]) -> dict[str, object] | None:
    """Exchange messages with the other rank of a pair. A collective of the two.

    Returns:
        on the pair's first rank the ranks, the latency and the bandwidth; None on the second.
    """
    peer = pair[1] if ranks.rank == pair[0] else pair[0]
    small = torch.zeros(1, device=ranks.device)
    # The first exchange connects the two.
    for _ in range(3):
        exchange(small, peer)
    latency = statistics.median(exchange(small, peer) for _ in range(PINGS))
    first = torch.zeros(MESSAGE_BYTES[0] // 4, device=ranks.device)
    exchange(first, peer)
    # Both ranks need the same number of messages: the larger of their estimates decides.
    slower = torch.tensor([exchange(first, peer)], device=ranks.device)
    theirs = torch.empty_like(slower)
    exchange(slower, peer, theirs)
    sizes = affordable(max(slower.item(), theirs.item()))
    times = []
    for size in sizes:
        message = torch.zeros(size // 4, device=ranks.device)
        times.append(statistics.median(exchange(message, peer) for _ in range(REPEATS)))
    if ranks.rank != pair[0]:
        return None
    return {"pair": pair, "latency": latency, "bandwidth": bandwidth_of(sizes, times)}


def affordable(first_seconds: float) -> tuple[int, ...]:
    """The sizes, beginning with the smallest two, whose messages fit into PAIR_SECONDS."""
    pace, spent = first_seconds / MESSAGE_BYTES[0], 0.0
    for count, size in enumerate(MESSAGE_BYTES):
        spent += REPEATS * size * pace
        if count >= 2 and spent > PAIR_SECONDS:
            return MESSAGE_BYTES[:count]
    return MESSAGE_BYTES


def bandwidth_of(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Bytes per second by the slope of a line through the messages' times.

    What each message costs besides, and what a token bucket passes at once, does not count. If
    noise gives no slope, the largest message alone decides.
    """
    mean_size, mean_time = statistics.fmean(sizes), statistics.fmean(seconds)
    pairs = list(zip(sizes, seconds, strict=True))
    rise = sum((size - mean_size) * (time_ - mean_time) for size, time_ in pairs)
    spread = sum((size - mean_size) ** 2 for size in sizes)
    return spread / rise if rise > 0 else sizes[-1] / seconds[-1]


def exchange(message: torch.Tensor, peer: int, into: torch.Tensor | None = None) -> float:
    """Send a message to the peer while one of the same size comes from it; returns the seconds."""
    into = torch.empty_like(message) if into is None else into
    _settle(message)
    began = time.perf_counter()
    parts = [dist.P2POp(dist.isend, message, peer), dist.P2POp(dist.irecv, into, peer)]
    for work in dist.batch_isend_irecv(parts):
        work.wait()
    _settle(message)
    return time.perf_counter() - began


def _settle(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _print(told: dict[str, object]) -> None:
    print(MARK + json.dumps(told), flush=True)


def _give_up() -> None:
    print(f"yolods: the links were not measured within {RANK_SECONDS:g} s", file=sys.stderr)
    sys.stderr.flush()
    # This is the timer's thread; the main thread may be blocked in C++.
    os._exit(LOST)
