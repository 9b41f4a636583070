"""What ranks tell each other beside the collectives: small values under names, kept by rank 0's process.

A server of its own (torch's TCPStore) and not the process group's: a thread that talks here neither waits for nor
disturbs a collective. One connection serves one thread at a time, so every thread takes a `clone`.

A call can wait without end where rank 0's process is stopped or its host is cut off (torch 2.13: the time-out of a read
ends in a second one that has none). Whoever must not wait asks from a thread of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from yolods.distributed.world import Ranks

CONNECT = timedelta(seconds=60)


class KeyValueStore:
    """Named values that any rank writes and any rank reads. Values are what JSON takes."""

    def __init__(self, store: dist.Store) -> None:
        self._store = store

    def put(self, key: str, value: Any) -> None:
        """Write a value; an earlier one of that name is gone.

        Raises:
            RuntimeError: rank 0's process is gone.
        """
        self._store.set(key, json.dumps(value))

    def get(self, keys: Sequence[str]) -> list[Any]:
        """The values of `keys`; None where there is none yet.

        Raises:
            RuntimeError: rank 0's process is gone.
        """
        if not keys:
            return []
        if self._store.check(list(keys)):  # the common case, in two messages however many keys there are
            return [json.loads(value) for value in self._store.multi_get(list(keys))]
        return [json.loads(self._store.get(key)) if self._store.check([key]) else None for key in keys]

    def clone(self) -> KeyValueStore:
        """The same store, over another connection."""
        return KeyValueStore(self._store.clone())


def open_store(ranks: Ranks) -> KeyValueStore:
    """The store of all ranks; in a single process it needs no network. A collective."""
    if ranks.size == 1:
        return KeyValueStore(_Local())
    address, store = os.environ["MASTER_ADDR"], None
    if ranks.is_main:
        store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=CONNECT)
    port = ranks.from_main(store.port if store is not None else None)
    return KeyValueStore(
        store or dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=CONNECT)
    )


class _Local(dist.HashStore):
    """A store within this process; threads share it as it is."""

    def clone(self) -> _Local:
        return self
