"""Memory that two streams, or a stream and the host, use in no order.

Of every claimed storage is kept who read and who wrote which bytes last. A use is a race with an
earlier one of the same bytes where one of the two writes, and the later does not know the earlier
to be over (`streams.Clocks`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from torch import Tensor

from tests.rehearsal.pretended.claims import claim_of
from tests.rehearsal.pretended.record import Record, Sight, sight
from tests.rehearsal.pretended.streams import Clocks

_Part = tuple[int, int, bool]
"""First byte and end, and whether it is written."""


@dataclass(frozen=True)
class _Use:
    tick: int
    by: Sight


class Races:
    """Watches who uses what."""

    def __init__(self, clocks: Clocks, record: Record) -> None:
        self._clocks, self._record = clocks, record

    def use(
        self, what: str, stream: Hashable, read: Iterable[Tensor], written: Iterable[Tensor]
    ) -> None:
        """Something is launched on a stream, or done by the host.

        Args:
            what: the operation.
            read, written: tensors; what is ordinary host memory is left out.
        """
        use = _Use(self._clocks.launch(stream), sight(what))
        for tensors, writes in ((read, False), (written, True)):
            for tensor in tensors:
                self._use(tensor, use, stream, writes)

    def _use(self, tensor: Tensor, use: _Use, stream: Hashable, writes: bool) -> None:
        claim = claim_of(tensor)
        if claim is None or not tensor.numel():
            return
        begin, end = _bytes_of(tensor)
        uses: dict[Hashable, dict[_Part, _Use]] = claim.uses
        for other, parts in uses.items():
            if other == stream:
                continue
            for (first, last, wrote), earlier in parts.items():
                meets = first < end and begin < last and (writes or wrote)
                if meets and not self._clocks.knows(stream, other, earlier.tick):
                    kinds = f"{'write' if writes else 'read'} after {'write' if wrote else 'read'}"
                    self._record.races[_pair(kinds, use.by, stream, earlier.by, other)] += 1
        uses.setdefault(stream, {})[begin, end, writes] = use


def _pair(kinds: str, later: Sight, stream: Hashable, earlier: Sight, other: Hashable) -> Sight:
    what = f"{kinds}: {later.what} on {stream}, {earlier.what} on {other} at {earlier.lines}"
    return Sight(what, later.place, later.lines)


def _bytes_of(tensor: Tensor) -> tuple[int, int]:
    """First byte and end of the part of its storage that a tensor spans; gaps between its rows are
    counted in."""
    size = tensor.element_size()
    begin = tensor.storage_offset() * size
    span = 1 + sum(
        (count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return begin, begin + span * size
