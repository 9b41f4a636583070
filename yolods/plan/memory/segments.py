"""A replay of CUDA's caching allocator: what it reserves for a series of allocations.

The rules are those of torch 2.13, c10/cuda/CUDACachingAllocator.cpp: sizes are multiples of 512
bytes; blocks up to 1 MiB come from segments of 2 MiB, larger ones from segments of 20 MiB, and
those of 10 MiB and more from a segment of their own, a multiple of 2 MiB; the smallest free block
that is large enough is taken, and split if enough remains; neighbours that are free are merged.
Segments are never given back. Streams, and what happens when memory runs out, are left out. Not
compared with a GPU.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from yolods.plan.memory.trace import Trace

_MIB = 2**20
GRAIN = 512
"""Bytes of which every size is a multiple."""
SMALL_BLOCK = _MIB
"""Largest block of the pool of small blocks."""
SMALL_SEGMENT, LARGE_SEGMENT = 2 * _MIB, 20 * _MIB
OWN_SEGMENT = 10 * _MIB
"""From this size on a block has a segment of its own size."""
REPLAYS = 2
"""Micro-batches until the reserved memory no longer grows."""


@dataclass(eq=False)
class _Block:
    """A part of a segment."""

    place: int
    size: int
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None

    @property
    def entry(self) -> tuple[int, int, _Block]:
        """In a pool: blocks are chosen in the order of their sizes and places."""
        return self.size, self.place, self


class Segments:
    """The allocator's segments; nothing is ever allocated."""

    def __init__(self) -> None:
        self.reserved = 0
        """Bytes of all segments."""
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}

    def allocate(self, size: int) -> _Block:
        """A block for `size` bytes."""
        size = max(-(-size // GRAIN) * GRAIN, GRAIN)
        small = size <= SMALL_BLOCK
        pool = self._free[small]
        at = bisect_left(pool, (size, -1))
        block = pool.pop(at)[-1] if at < len(pool) else self._segment(size)
        block.free = False
        rest = block.size - size
        if rest >= GRAIN if small else rest > SMALL_BLOCK:
            split = _Block(block.place + size, rest, True, block, block.after)
            if block.after is not None:
                block.after.before = split
            block.after, block.size = split, size
            insort(pool, split.entry)
        return block

    def release(self, block: _Block, asked: int) -> None:
        """Take a block back that was given for `asked` bytes."""
        pool = self._free[asked <= SMALL_BLOCK]
        block.free = True
        if block.after is not None and block.after.free:
            pool.pop(bisect_left(pool, block.after.entry))
            _merge(block, block.after)
        if block.before is not None and block.before.free:
            pool.pop(bisect_left(pool, block.before.entry))
            block = _merge(block.before, block)
        insort(pool, block.entry)

    def _segment(self, size: int) -> _Block:
        if size <= SMALL_BLOCK:
            whole = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            whole = LARGE_SEGMENT
        else:
            whole = -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
        place = self.reserved
        self.reserved += whole
        return _Block(place, whole)


def _merge(first: _Block, second: _Block) -> _Block:
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    return first


def reserved_share(trace: Trace, images: int) -> float:
    """Bytes that the allocator reserves for a micro-batch's passes, per byte of their peak."""
    sizes = (trace.fixed + images * trace.each).tolist()
    moments = np.concatenate((trace.born, trace.dead))
    numbers = np.concatenate((np.arange(len(sizes)), -1 - np.arange(len(sizes))))
    events = numbers[np.argsort(moments, kind="stable")].tolist()
    segments, held, peak = Segments(), 0, 1
    for _ in range(REPLAYS):
        blocks: dict[int, _Block] = {}
        for event in events:
            number = event if event >= 0 else -1 - event
            if not sizes[number]:
                continue
            if event >= 0:
                blocks[number] = segments.allocate(sizes[number])
                held += sizes[number]
                peak = max(peak, held)
            else:
                segments.release(blocks.pop(number), sizes[number])
                held -= sizes[number]
    return segments.reserved / peak
