"""The ranks that measure links: the first one of each host sends messages to its neighbours.

    1    hosts 0 - 1, 2 - 3, ...      each pair at the same time
    2    hosts 1 - 2, 3 - 4, ...      on both sides of a host, but not at once
    3    last - first                 if their number is odd

These are the links that rings and pipelines use, because hosts hold consecutive ranks. Afterwards
all ranks may take steps of a model at the same time, as in a run, to measure what a CPU needs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
import torch.distributed as dist

from yolods.distributed.world import LOST, Ranks, joined
from yolods.plan.step_profile import StepsOf

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


@dataclass(frozen=True)
class Direction:
    """One direction of a link, as the rank sees it that sends."""

    latency: float
    """Seconds."""
    bandwidth: float
    """Bytes per second."""
    largest: int
    """Bytes of the largest message that time allowed."""


def run_link_rank(words: Sequence[str]) -> None:
    """Measure as a rank that a launcher has started. Rank 0 prints a line per link and profile.

    Args:
        words: `StepsOf.words` of what to compute; (): only links are measured.

    Raises:
        UserError: as `join_world`.
    """
    timer = threading.Timer(RANK_SECONDS, _give_up)
    timer.daemon = True
    timer.start()
    with joined() as ranks:
        for pairs in rounds_of(ranks.size // ranks.local_size):
            ranks.barrier()
            for told in filter(None, ranks.to_main(_link_within(ranks, pairs))):
                _print(told)
        steps = StepsOf.from_words(words) if words else None
        for precision in steps.precisions if steps else ():
            ranks.barrier()
            profiles = ranks.to_main(steps.measure(precision))
            if ranks.is_main:
                # All ranks wait for the slowest one.
                _print(asdict(max(profiles, key=lambda each: each.total)))
    timer.cancel()


def rounds_of(size: int) -> list[list[tuple[int, int]]]:
    """The links of a ring, divided so that no rank is in two pairs of a round."""
    links = [(rank, (rank + 1) % size) for rank in range(size if size > 2 else size - 1)]
    odd = [links.pop()] if size > 1 and size % 2 and size > 2 else []
    return [found for found in (links[::2], links[1::2], odd) if found]


def _link_within(ranks: Ranks, pairs: Sequence[tuple[int, int]]) -> dict[str, object] | None:
    """Measure this rank's link, if its host has one in this round and it is the first rank there.

    Args:
        pairs: numbers of hosts.
    """
    size = ranks.local_size
    own = [pair for pair in pairs if ranks.rank in (pair[0] * size, pair[1] * size)]
    found = measure_pair(ranks, (own[0][0] * size, own[0][1] * size)) if own else None
    return None if found is None else {"pair": own[0], **found}


def measure_pair(ranks: Ranks, pair: tuple[int, int]) -> dict[str, object] | None:
    """Measure the link to the other rank of a pair, one way after the other. A collective of both.

    The slower way counts. A full duplex link is as fast both ways at once, but CPUs that copy what
    it carries share their cores between both ways.

    Returns:
        on the pair's first rank the numbers of a `Link`; None on the second.
    """
    first = ranks.rank == pair[0]
    peer = pair[1] if first else pair[0]
    ways = [measure_way(ranks.device, peer, leads=leads) for leads in (first, not first)]
    leading = ways[0 if first else 1]
    bandwidth, copying = leading.bandwidth, 0.0
    if ranks.device.type == "cpu":
        both, copying = measure_both_ways(pair, min(way.largest for way in ways))
        bandwidth = min(bandwidth, both)
    own = torch.tensor([leading.latency, bandwidth, copying], device=ranks.device)
    if not first:
        dist.send(own, peer)
        return None
    dist.recv(theirs := torch.zeros_like(own), peer)
    most, least = torch.maximum(own, theirs).tolist(), torch.minimum(own, theirs).tolist()
    return {"latency": most[0], "bandwidth": least[1], "copying": most[2]}


def measure_way(device: torch.device, peer: int, *, leads: bool) -> Direction:
    """Send messages to the peer (`leads`), or receive them."""
    answer = torch.zeros(1, device=device)
    # The first exchange connects the two. Then the fastest of several: whatever else a host does
    # only lengthens an exchange.
    for _ in range(3):
        pass_on(answer, answer, peer, leads=leads)
    there_and_back = min(pass_on(answer, answer, peer, leads=leads) for _ in range(PINGS))
    message = torch.zeros(MESSAGE_BYTES[0] // 4, device=device)
    pass_on(message, answer, peer, leads=leads)
    # Both ranks need the same number of messages: the rank that leads decides.
    pace = torch.tensor([pass_on(message, answer, peer, leads=leads)], device=device)
    pass_on(pace, answer, peer, leads=leads)
    times = []
    for size in (sizes := affordable(pace.item())):
        message = torch.zeros(size // 4, device=device)
        times.append(min(pass_on(message, answer, peer, leads=leads) for _ in range(REPEATS)))
    return Direction(there_and_back / 2, bandwidth_of(sizes, times), sizes[-1])


def measure_both_ways(pair: tuple[int, int], size: int) -> tuple[float, float]:
    """All-reduce, as most layouts do: both ranks send, receive and add at the same time.

    Args:
        size: bytes of the tensor, as many as each rank sends.

    Returns:
        bytes per second each way, the median, and CPU seconds of this rank per byte.
    """
    group, numbers = _group(pair), torch.zeros(size // 4)
    # The first one connects the two.
    dist.all_reduce(numbers, group=group)
    times, busy = [], time.process_time()
    for _ in range(REPEATS):
        began = time.perf_counter()
        dist.all_reduce(numbers, group=group)
        times.append(time.perf_counter() - began)
    busy = time.process_time() - busy
    return size / statistics.median(times), busy / (REPEATS * size)


@lru_cache
def _group(pair: tuple[int, int]) -> dist.ProcessGroup:
    """The group of two ranks; the others take no part in making it."""
    return dist.new_group(list(pair), use_local_synchronization=True)


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


def pass_on(message: torch.Tensor, answer: torch.Tensor, peer: int, *, leads: bool) -> float:
    """Send a message to the peer (`leads`) or receive it; returns the seconds to the answer."""
    _settle(message)
    began = time.perf_counter()
    if leads:
        dist.send(message, peer)
        dist.recv(answer, peer)
    else:
        dist.recv(message, peer)
        dist.send(answer, peer)
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
