"""The memory of one micro-batch's passes over time, for a whole model or for one of its stages."""

from __future__ import annotations

from dataclasses import dataclass

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
    arrived: np.ndarray
    """(moments,) int64: elements of the parameters whose gradients are complete, at each moment of
    the backward pass."""

    @property
    def kept(self) -> int:
        """Bytes between forward and backward."""
        return int(self.forward[-1])


def whole_timeline(trace: Trace, images: int) -> Timeline:
    """The passes of a module as it was traced, for a micro-batch of `images` images."""
    held = held_bytes(_sizes(trace, images), trace.born, trace.dead, trace.length)
    return Timeline(held[: trace.turn + 1], held[trace.turn :], _arrived(trace)[trace.turn :])


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
    arrived = _arrived(trace)
    return Timeline(
        held[start : stop + 1] + received,
        held[back : end + 1] + received + sent,
        arrived[back : end + 1] - arrived[back],
    )


def _sizes(trace: Trace, images: int) -> np.ndarray:
    return trace.fixed + images * trace.each


def _arrived(trace: Trace) -> np.ndarray:
    elements = np.zeros(trace.length + 1, np.int64)
    np.add.at(elements, trace.arrivals[:, 0], trace.arrivals[:, 1])
    return elements.cumsum()
