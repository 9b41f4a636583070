"""A key-value store for messages between ranks outside the collectives, served by rank 0's process.

It is a torch TCPStore of its own, separate from the process group's, so a thread that uses it
neither waits for a collective nor disturbs one. One connection serves one thread at a time, so
every thread uses a `clone`.

A call can block forever if rank 0's process is stopped or its host is cut off (torch 2.13: the
timeout of a read leads to a second read without one). A caller that must not block uses a separate
thread.
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
    """Named JSON values that any rank writes and any rank reads."""

    def __init__(self, store: dist.Store) -> None:
        self._store = store

    def put(self, key: str, value: Any) -> None:
        """Write a value and replace an earlier one of that name.

        Raises:
            RuntimeError: rank 0's process is gone.
        """
        self._store.set(key, json.dumps(value))

    def get(self, keys: Sequence[str]) -> list[Any]:
        """The values of `keys`; None for a key without a value.

        Raises:
            RuntimeError: rank 0's process is gone.
        """
        if not keys:
            return []
        # The common case: two messages, however many keys there are.
        if self._store.check(list(keys)):
            return [json.loads(value) for value in self._store.multi_get(list(keys))]
        return [
            json.loads(self._store.get(key)) if self._store.check([key]) else None for key in keys
        ]

    def clone(self) -> KeyValueStore:
        """The same store over another connection."""
        return KeyValueStore(self._store.clone())


def open_store(ranks: Ranks) -> KeyValueStore:
    """Open the store of all ranks; a single process needs no network. A collective."""
    if ranks.size == 1:
        return KeyValueStore(_Local())
    address, store = os.environ["MASTER_ADDR"], None
    if ranks.is_main:
        # Port 0: any free one, which rank 0 then tells the others.
        store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=CONNECT)
    port = ranks.from_main(store.port if store is not None else None)
    return KeyValueStore(
        store
        or dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=CONNECT)
    )


class _Local(dist.HashStore):
    """A store within this process, which its threads can share."""

    def clone(self) -> _Local:
        return self
