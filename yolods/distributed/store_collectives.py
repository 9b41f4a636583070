"""Collectives of small values over the store, for threads other than the main thread.

torch's collectives belong to the main thread, which may be in one at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from yolods.distributed.store import KeyValueStore
from yolods.distributed.world import Ranks

POLL_SECONDS = 0.05


class StoreCollectives:
    """One conversation among all ranks, one thread each, about JSON values.

    Every method is a collective.

    Conversations of a topic follow one another. Their keys alternate between two sets: the values
    of one conversation stay in the store during the next one, for ranks that read them late, and
    the one after that overwrites them.
    """

    def __init__(
        self, kv_store: KeyValueStore, ranks: Ranks, topic: str, number: int, seconds: float
    ) -> None:
        """
        Args:
            kv_store: a clone that no other thread uses meanwhile.
            number: number of the conversation, the same on all ranks.
            seconds: limit of the wait for another rank's value.
        """
        self._kv_store, self._ranks, self._seconds = kv_store, ranks, seconds
        self._topic, self._number, self._said = f"{topic}/{number % 2}", number, 0

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on every rank.

        Raises:
            TimeoutError, ConnectionError: rank 0 did not answer in time, or is gone.
        """
        self._said += 1
        if self._ranks.is_main:
            self._put(value)
            return value
        return self._await([0])[0]

    def to_main(self, value: Any) -> list[Any]:
        """Every rank's value in rank order on rank 0; an empty list on the others.

        Raises:
            TimeoutError, ConnectionError: some rank did not answer in time, or rank 0 is gone.
        """
        self._said += 1
        if self._ranks.is_main:
            return [value, *self._await(range(1, self._ranks.size))]
        self._put(value)
        return []

    def _key(self, rank: int) -> str:
        return f"{self._topic}/{self._said}/{rank}"

    def _put(self, value: Any) -> None:
        try:
            # With the number, because the key may still hold the value of an earlier conversation.
            self._kv_store.put(self._key(self._ranks.rank), [self._number, value])
        except RuntimeError as error:
            raise ConnectionError(f"rank 0 cannot be reached: {error}") from None

    def _await(self, ranks: Sequence[int]) -> list[Any]:
        deadline, keys = time.monotonic() + self._seconds, [self._key(rank) for rank in ranks]
        while True:
            try:
                told = self._kv_store.get(keys)
            except RuntimeError as error:
                raise ConnectionError(f"rank 0 cannot be reached: {error}") from None
            late = [
                rank
                for rank, one in zip(ranks, told, strict=True)
                if one is None or one[0] != self._number
            ]
            if not late:
                return [one[1] for one in told]
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"rank {', '.join(map(str, late))} did not answer within {self._seconds:g} s"
                )
            time.sleep(POLL_SECONDS)
