"""Work in processes that are forked from this one, or in threads: results in order, and none
outlives it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from yolods.errors import UserError
from yolods.system.interrupt import REQUESTS

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Items per process that are computed before their results are taken, so that memory is bounded."""


def in_workers(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, *, doing: str
) -> Generator[Result, None, None]:
    """The results of `work` in the order of the items.

    The processes are forked, so that they have what `work` refers to without a copy. They end with
    the iterator, and with this process however it ends. An exception of `work` is raised here.

    Args:
        work: called in another process; its result is pickled.
        items: what it is called with, pickled as well.
        workers: number of processes; with one, this process does the work.
        doing: what the processes do, for the message, such as "checks files".

    Raises:
        UserError: a process died.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _prepare, (work, os.getpid())
    )
    try:
        yield from _in_order(pool, _do, items, workers * AHEAD)
    except BrokenProcessPool:
        raise UserError(
            f"a process that {doing} died; the usual cause is too little memory: free some, or use "
            f"fewer workers (now {workers})"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """As `in_workers`, in threads, which share the items' memory; the items are made by the caller.

    For work that lets other threads run, such as OpenCV's.
    """
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        try:
            yield from _in_order(pool, work, items, max(threads, 1) * AHEAD)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_order(
    pool: Executor, work: Callable[[Any], Any], items: Iterable[Any], most: int
) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_work: Callable[[Any], Any]
"""What a worker does with an item. Set once, because a task is sent to it by the name of a
function."""


def _prepare(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    # A terminal signals workers too; the main process ends them.
    for request in REQUESTS:
        signal.signal(request, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process after a parent that was killed, which can no longer end it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(item: Any) -> Any:
    return _work(item)
