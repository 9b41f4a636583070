"""What two ranks sent in an epoch, for tests of what is shown of it."""

from __future__ import annotations

from yolods.stats import CommunicationStats, RankCommunication


def communication(needed: float | None) -> CommunicationStats:
    """Both send 3 MB in 3 calls per step; rank 0 sends two of them to rank 1."""
    none = {"reduce": 0.0, "gather": 0.0, "boundary": 0.0, "ours": 0.0}
    first, second = (
        RankCommunication(
            rank=rank,
            sent={**none, "reduce": 1e6, "gather": 2e6},
            calls={**none, "reduce": 1.0, "gather": 2.0},
            held=0.25 + rank / 4,
            waiting=0.0 if rank else 0.125,
            boundaries={} if rank else {1: 2e6},
            between=0.0 if rank else 7e6,
        )
        for rank in range(2)
    )
    return CommunicationStats(
        ranks=(first, second),
        seconds=0.41,
        step_seconds=0.93,
        hidden=0.12,
        needed=needed,
        layout="ZeRO-1 needs 2P",
    )
