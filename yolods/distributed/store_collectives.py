"""Collectives of small values over the store, for threads: torch's belong to the main thread, which may be in one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from yolods.distributed.store import KeyValueStore
from yolods.distributed.world import Ranks

POLL_SECONDS = 0.05


class StoreCollectives:
    """One conversation of all ranks, a thread of each; every method is a collective. Values are what JSON takes.

    Conversations of a topic follow one another. What was said in one stays on the store through the next, for ranks
    that are slower to read it, and is written over by the one after that.
    """

    def __init__(self, kv_store: KeyValueStore, ranks: Ranks, topic: str, number: int, seconds: float) -> None:
        """
        Args:
            kv_store: a clone that no other thread uses meanwhile.
            number: of the conversation, alike on all ranks.
            seconds: how long to wait for what another rank has to say.
        """
        self._kv_store, self._ranks, self._seconds = kv_store, ranks, seconds
        self._topic, self._number, self._said = f"{topic}/{number % 2}", number, 0

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on every rank.

        Raises:
            TimeoutError, ConnectionError: rank 0 did not say it in time, or is gone.
        """
        self._said += 1
        if self._ranks.is_main:
            self._put(value)
            return value
        return self._await([0])[0]

    def to_main(self, value: Any) -> list[Any]:
        """Every rank's value in rank order on rank 0; an empty list elsewhere.

        Raises:
            TimeoutError, ConnectionError: some rank did not say it in time, or rank 0 is gone.
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
            late = [rank for rank, one in zip(ranks, told, strict=True) if one is None or one[0] != self._number]
            if not late:
                return [one[1] for one in told]
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {', '.join(map(str, late))} did not answer within {self._seconds:g} s")
            time.sleep(POLL_SECONDS)
