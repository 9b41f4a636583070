"""The memory of one micro-batch's passes over time, for a whole model or for one of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from yolods.plan.memory.storage_log import held_bytes
from yolods.plan.memory.trace import Trace


@dataclass(frozen=True, eq=False)
class Timeline:
    """What the passes of one micro-batch hold, moment by moment."""

    forward: np.ndarray
    """(moments,) int64 bytes during the forward pass; the last is what it leaves behind."""
    backward: np.ndarray
    """(moments,) int64 bytes during the backward pass, without the parameters' gradients that are
    complete."""
    arrivals: np.ndarray
    """(parameters, 2) int64: the moment of the backward pass at which a parameter's gradient is
    complete, and its elements; in the order of the moments."""
    ended: int
    """The moment of the backward pass after which the engine lets go of the outputs."""

    @cached_property
    def arrived(self) -> np.ndarray:
        """(moments,) int64: elements of the parameters whose gradients are complete, at each moment
        of the backward pass."""
        elements = np.zeros(len(self.backward), np.int64)
        np.add.at(elements, self.arrivals[:, 0], self.arrivals[:, 1])
        return elements.cumsum()

    @property
    def kept(self) -> int:
        """Bytes between forward and backward."""
        return int(self.forward[-1])


def whole_timeline(trace: Trace, images: int) -> Timeline:
    """The passes of a module as it was traced, for a micro-batch of `images` images."""
    held = held_bytes(_sizes(trace, images), trace.born, trace.dead, trace.length)
    return Timeline(
        held[: trace.turn + 1],
        held[trace.turn :],
        _arrivals(trace, trace.turn, trace.length),
        trace.ended - trace.turn,
    )


def stage_timeline(trace: Trace, nodes: range, images: int, received: int, sent: int) -> Timeline:
    """The passes of a pipeline stage, from a trace of all nodes.

    The engine holds what a stage received, and its gradient, until that has been sent; and what it
    sends, and the gradient that arrives for it, until the stage's backward pass is over.

    Args:
        trace: result of `trace_nodes`.
        nodes: the stage's.
        images: of the micro-batch.
        received: bytes of the values that enter the stage; 0 for the first one.
        sent: bytes of the values that leave it; 0 for the last one.
    """
    start = trace.forward[nodes.start] if nodes.start else 0
    stop = trace.forward[nodes.stop]
    back = trace.backward[nodes.stop]
    end = trace.backward[nodes.start] if nodes.start else trace.length
    sizes, born, dead = _sizes(trace, images), trace.born, trace.dead
    ahead = (born >= start) & (born < stop)
    behind = (born >= back) & (born < end)
    # What a later stage frees in the trace is a value that crosses the cut.
    dead = np.where(ahead & (dead >= stop) & (dead <= back) & (sent > 0), end, dead)
    mine = np.where(ahead | behind, sizes, 0)
    held = held_bytes(mine, born, np.minimum(dead, end), trace.length)
    return Timeline(
        held[start : stop + 1] + received,
        held[back : end + 1] + received + sent,
        _arrivals(trace, back, end),
        min(end, trace.ended) - back,
    )


def _sizes(trace: Trace, images: int) -> np.ndarray:
    return np.where(trace.for_several & (images == 1), 0, trace.fixed + images * trace.each)


def _arrivals(trace: Trace, start: int, end: int) -> np.ndarray:
    """The gradients that arrive after moment `start` and until `end`, counted from `start`."""
    moments = trace.arrivals[:, 0]
    mine = trace.arrivals[(moments > start) & (moments <= end)]
    return mine - np.array([start, 0])
