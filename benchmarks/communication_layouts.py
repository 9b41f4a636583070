"""The layouts of `communication.py`, and the interface's bytes that follow from the meter's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.plan_links_model import Case, Task

LAYOUTS = {
    "ZeRO-0": (Case("ZeRO-0", 0), 1),
    "ZeRO-1": (Case("ZeRO-1", 1), 1),
    "ZeRO-2": (Case("ZeRO-2", 2), 1),
    "ZeRO-2, accumulation 4": (Case("ZeRO-2", 2), 4),
    "ZeRO-3": (Case("ZeRO-3", 3), 1),
    # Last: DeepSpeed keeps its groups, which would be those of later engines.
    "pipeline of 2": (Case("pipeline 2", 0, 2), 2),
}
"""Layouts of two ranks, with micro-batches per step and replica, or per stage."""
SIZES = ((4096, 40), (8 << 20, 3))
"""Bytes of a tensor of known size, and how often it is sent: for collectives, which carry whole
buckets."""
BOUNDARY_SIZES = ((4096, 100), (256 << 10, 30))
"""The same for sends and receives. A stage's messages are small, and how many packets one
acknowledgement stands for depends on the size."""
OPERATION = {
    "reduce": "all_reduce",
    "gather": "all_gather",
    "boundary": "send",
    "ours": "all_reduce",
}
"""By which operation of known size a kind is judged; gloo's reduce_scatter is an all-reduce."""
LARGE, SINGLE = 65535, 1
"""Segments per packet that the kernel hands to an interface: for measuring time, because each
packet costs CPU time, and for counting bytes, because an interface counts what it is given."""


def case_of(name: str) -> Case:
    """A layout's case."""
    return LAYOUTS[name][0]


@dataclass(frozen=True)
class Plan:
    """What the ranks do."""

    model: str
    imgsz: int
    micro: int
    steps: int
    """Of a layout and link: those that count bytes, and those of each round by the clock."""
    rounds: int
    """How often each link has its turn."""
    rates: tuple[str, ...]
    """As `tc` writes them; "": unlimited."""
    interface: str
    out: str
    """Path of a rank's results, with {rank}."""
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    """Those to measure."""

    def as_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of `as_json`."""
        found = json.loads(text)
        lists = {name: tuple(found[name]) for name in ("rates", "layouts") if name in found}
        return cls(**{**found, **lists})

    def task(self, name: str) -> Task:
        """A layout's task in the terms of `plan_links`."""
        times = LAYOUTS[name][1]
        return Task(
            self.model, self.imgsz, self.micro, times, 1, self.rates, self.interface, self.out
        )


def sizes_of(operation: str) -> tuple[tuple[int, int], ...]:
    """Bytes and repetitions of an operation's transfers of known size."""
    return SIZES if operation.startswith("all_") else BOUNDARY_SIZES


def on_the_wire(
    sent: Mapping[str, float],
    calls: Mapping[str, float],
    known: Mapping[str, Sequence[float]],
    received: tuple[float, float] = (0.0, 0.0),
) -> float:
    """Bytes that an interface sends for these bytes of payload.

    A straight line through both sizes of each operation (`sizes_of`): bytes per call, for the
    headers of gloo's messages, and bytes per byte of payload, for those of packets. What goes one
    way is acknowledged by packets of their own, so that a receive has such a line as well.

    Args:
        sent: payload by kind, as the meter has counted it.
        calls: calls by kind.
        known: the interface's bytes per call of each operation, at both sizes.
        received: payload and calls that the other rank has sent over a boundary.
    """
    parts = [(OPERATION[kind], sent[kind], calls[kind]) for kind in sent]
    total = 0.0
    for operation, payload, count in (*parts, ("receive", *received)):
        small, large = known[operation]
        sizes = [size for size, _ in sizes_of(operation)]
        slope = (large - small) / (sizes[1] - sizes[0])
        total += slope * payload + (small - slope * sizes[0]) * count
    return total
