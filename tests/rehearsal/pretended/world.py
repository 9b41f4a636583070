"""All that one pretended device consists of."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from tests.rehearsal.pretended.claims import Ledger
from tests.rehearsal.pretended.races import Races
from tests.rehearsal.pretended.record import Record
from tests.rehearsal.pretended.streams import Clocks, Streams


class World:
    """A device, what it holds, and what is seen of it."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        """What tensors say; `torch.cuda.set_device` gives it another index."""
        self.record, self.ledger, self.clocks = Record(), Ledger(), Clocks()
        self.streams = Streams(self.clocks, self.record.wait)
        self.races = Races(self.clocks, self.record)
        self.copying = False
        """A copy between host and device is being made: its own operations are none of the
        program's."""

    @property
    def stream(self) -> Hashable:
        """Where kernels are launched."""
        return self.streams.current.cuda_stream
