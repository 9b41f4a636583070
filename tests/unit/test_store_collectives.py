"""Collectives over the store, by threads that stand in for ranks. Real ranks:
tests/faults/test_checkpoints.py."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from yolods.checkpoint.verify import single_process
from yolods.distributed.store import KeyValueStore, open_store
from yolods.distributed.store_collectives import StoreCollectives
from yolods.distributed.world import Ranks

SIZE, TALKS = 3, 6


def rank(number: int) -> Ranks:
    return Ranks(number, SIZE, number, "here", torch.device("cpu"))


def take_part(kv_store: KeyValueStore, number: int) -> list[object]:
    """What one rank heard in several conversations; rank 2 is slow."""
    heard: list[object] = []
    for place in range(TALKS):
        talk = StoreCollectives(kv_store.clone(), rank(number), "topic", place, seconds=20)
        time.sleep(0.12 if number == 2 else 0)
        heard += [
            talk.from_main(["room", place] if number == 0 else None),
            talk.to_main([number, place]),
            talk.from_main(["done", place] if number == 0 else None),
        ]
    return heard


def test_every_rank_hears_what_was_said_in_its_conversation() -> None:
    """Rank 0 is in the next one, and has spoken, while the slow one is still in the one before."""
    kv_store = open_store(single_process())
    with ThreadPoolExecutor(SIZE) as pool:
        heard = list(pool.map(lambda number: take_part(kv_store, number), range(SIZE)))
    for number in range(SIZE):
        expected: list[object] = []
        for place in range(TALKS):
            told = [[each, place] for each in range(SIZE)] if number == 0 else []
            expected += [["room", place], told, ["done", place]]
        assert heard[number] == expected


def test_who_does_not_answer_is_named() -> None:
    kv_store = open_store(single_process())
    talk = StoreCollectives(kv_store, rank(1), "topic", 7, seconds=0.1)
    with pytest.raises(TimeoutError, match=r"^rank 0 did not answer within 0\.1 s$"):
        talk.from_main(None)
    talk = StoreCollectives(kv_store, rank(0), "topic", 7, seconds=0.1)
    talk.from_main("old")
    with pytest.raises(TimeoutError, match=r"^rank 1, 2 did not answer within 0\.1 s$"):
        talk.to_main("mine")
    with pytest.raises(TimeoutError, match="rank 0"):  # what it said is of another conversation
        StoreCollectives(kv_store, rank(1), "topic", 9, seconds=0.1).from_main(None)


def test_a_board_that_is_gone_is_no_traceback() -> None:
    class Gone(KeyValueStore):
        def __init__(self) -> None:
            pass

        def put(self, *_: object) -> None:
            raise RuntimeError("connection reset")

        get = put

    for ask in (lambda talk: talk.to_main(1), lambda talk: talk.from_main(None)):
        with pytest.raises(ConnectionError, match=r"^rank 0 cannot be reached: connection reset$"):
            ask(StoreCollectives(Gone(), rank(1), "topic", 0, seconds=5))
